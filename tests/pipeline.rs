//! From an open in a real container to a line in the alert log, and what must stay silent.

use tokentrail_tests::{
    AgentSetup, AuditLine, AuditLog, Container, Pod, Request, Sandbox, Stage, TOKEN_PATH,
};

#[test]
fn an_interactive_open_followed_by_a_request_is_one_alert_that_says_who_and_what() {
    let sandbox = Sandbox::create().unwrap();
    let audit = AuditLog::create(sandbox.folder().join("audit.log")).unwrap();
    let setup = AgentSetup::new(&sandbox, audit.path());
    let agent = setup.start().unwrap();
    let pod = Pod::create(&sandbox).unwrap();
    let container = Container::start(&sandbox, &pod).unwrap();
    let read = container.exec_tty(&["cat", TOKEN_PATH]).unwrap();
    assert!(read.output.contains(&pod.token), "{read:?}");
    audit
        .append(&AuditLine::recorded(Request::ListPods, Stage::ResponseComplete, &pod).unwrap())
        .unwrap();
    let alert = setup.alerts().wait_for("alert", |it| it["tokentrail"]["kind"] == "alert").unwrap();
    println!("{alert:#}\n{}\n{}", agent.log(), agent.get("/metrics").unwrap().body);
    println!("{}", agent.get("/statusz").unwrap().body);
    println!("{}", std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap());
    assert_eq!(alert["tokentrail"]["grade"], "interactive");
}

//! Which capabilities each route needs on the running kernel, found by running the agent with exactly
//! those: the smallest set of a few that works, and that it says what is missing with any one less.
//!
//! What was found is noted among the `facts`.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]
#![expect(clippy::print_stdout, reason = "what was found is for whoever reads a test's output")]

mod facts;

use std::thread;

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::json;
use tokentrail_tests::{Node, Sandbox};

use facts::note;

/// What loading and attaching may take, as errors name it.
const NAMES: [(CapabilitySet, &str); 4] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::SYS_RESOURCE, "CAP_SYS_RESOURCE"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
];

/// In the order in which an operator would rather grant them.
const SETS: [CapabilitySet; 4] = [
    CapabilitySet::BPF.union(CapabilitySet::PERFMON),
    CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::SYS_RESOURCE),
    CapabilitySet::SYS_ADMIN,
    CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_RESOURCE),
];

/// How an agent ended that was refused.
#[derive(Debug)]
struct Refused {
    code: Option<i32>,
    said: String,
}

/// Starts an agent on this route, as root with these capabilities and no others, and ends it.
fn run_with(capabilities: CapabilitySet, route: &str) -> Result<(), Refused> {
    let sandbox = Sandbox::create().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let setup = node.agent.args(["--route", route]);
    let mut agent = thread::scope(|scope| {
        let start = scope.spawn(|| {
            // A thread's own. What root executes has all that is still in there, and nothing else.
            for other in CapabilitySet::all().difference(capabilities) {
                // A kernel older than the capability has none to take away.
                let _ = remove_capability_from_bounding_set(other);
            }
            setup.spawn()
        });
        start.join().unwrap().unwrap()
    });
    if agent.wait_until_ready().is_ok() {
        let status = agent.status().unwrap();
        assert_eq!(status.pointer("/route"), Some(&json!(route)), "{status}");
        return Ok(());
    }
    let (status, said) = agent.wait().unwrap();
    Err(Refused { code: status.code(), said })
}

fn names(capabilities: CapabilitySet) -> Vec<&'static str> {
    let held = NAMES.iter().filter(|(capability, _)| capabilities.contains(*capability));
    held.map(|(_, name)| *name).collect()
}

#[test]
fn each_route_runs_with_the_least_set_and_says_what_is_missing_with_any_one_less() {
    for route in ["fexit", "kprobe", "exit"] {
        if let Err(refused) = run_with(CapabilitySet::all(), route) {
            // With everything granted it is the kernel that lacks something.
            assert_eq!(refused.code, Some(3), "{route}: {refused:?}");
            assert!(!refused.said.contains("panicked"), "{refused:?}");
            println!("skipped: {route} is refused here: {}", refused.said.trim());
            continue;
        }
        let mut refusals = Vec::new();
        let least = SETS.into_iter().find(|set| {
            let result = run_with(*set, route);
            result.map_err(|refused| refusals.push((names(*set), refused))).is_ok()
        });
        let least = least.unwrap_or_else(|| panic!("{route} needs more than any: {refusals:#?}"));
        note(&json!({"route": route, "capabilities": names(least)}));
        for (capability, name) in NAMES.iter().filter(|(it, _)| least.contains(*it)) {
            let mut less = least.difference(*capability);
            if *capability == CapabilitySet::SYS_ADMIN {
                // It includes these two: without, it is not what would be missed first.
                less |= SETS[0];
            }
            let refused = run_with(less, route).unwrap_err();
            assert_eq!(refused.code, Some(3), "{route} without {name}: {refused:?}");
            assert!(refused.said.contains(name), "{route} without {name}: {refused:?}");
        }
    }
}

//! What happens on a node, by chance: opens in real containers in all manners, and audit lines of
//! all kinds. The same seed gives the same sequence, at other times.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use tokentrail_tests::{
    Agent, AuditLine, Container, Node, Pod, Request, SERVICE_ACCOUNT_FOLDER, Sandbox, Stage,
    TOKEN_PATH, Workload,
};

/// How late a line may come, seconds.
pub(crate) const LATENESS: u64 = 30;
/// How long a line is held back at most: less than that, by more than one step takes.
const HELD_BACK: Duration = Duration::from_secs(5);
/// Pods whose tokens are opened; the first is a decoy's.
const VICTIMS: usize = 6;
const DECOY: usize = 0;

/// What has happened.
pub(crate) struct Scene<'sandbox> {
    pub(crate) sandbox: &'sandbox Sandbox,
    pub(crate) seed: u64,
    /// For how long workloads are learned, seconds.
    pub(crate) learning: u64,
    pub(crate) node: Node<'sandbox>,
    agent: Option<Agent>,
    dice: Rng,
    victims: Vec<Workload>,
    /// One that nobody attacks.
    bystander: Pod,
    thief: Container,
    /// Of each pod: the latest that it did or was done to it.
    latest: BTreeMap<String, Timestamp>,
    opened: BTreeSet<String>,
    /// Pods of which something came after something later.
    disordered: BTreeSet<String>,
    held_back: Vec<Line>,
    held_since: Instant,
    story: String,
}

/// An audit line on its way to the log.
struct Line {
    text: AuditLine,
    uid: String,
    received: Timestamp,
    /// Whether it can begin an incident.
    answered: bool,
}

impl<'sandbox> Scene<'sandbox> {
    /// Lets it all happen; then all of it has gone through the agent.
    pub(crate) fn play(sandbox: &'sandbox Sandbox, seed: u64, killed: bool, learning: u64) -> Self {
        let mut scene = Self::set(sandbox, seed, learning);
        let steps = scene.dice.usize(20..=40);
        let kill = scene.dice.usize(5..steps);
        if killed {
            // What workloads ask by themselves is not known after a restart: here they do not.
            for at in 0..VICTIMS {
                scene.exec(at, 0, TOKEN_PATH);
            }
        }
        for step in 0..steps {
            if scene.held_since.elapsed() > HELD_BACK || scene.dice.u8(0..3) == 0 {
                scene.release();
            }
            if killed && step == kill {
                scene.kill();
            }
            scene.act();
        }
        scene.release();
        scene.node.settle().unwrap();
        scene
    }

    fn set(sandbox: &'sandbox Sandbox, seed: u64, learning: u64) -> Self {
        let mut node = Node::new(sandbox).unwrap();
        let (config, rules) = (sandbox.folder().join("config.yaml"), rules(sandbox));
        let settings =
            format!("audit-lateness-seconds: {LATENESS}\nlearning-seconds: {learning}\n");
        fs::write(&config, settings).unwrap();
        fs::write(&rules, "decoys: [shop/backup-admin]\n").unwrap();
        node.agent = node.agent.args([OsStr::new("--config"), config.as_os_str()]);
        node.agent = node.agent.args([OsStr::new("--rules-file"), rules.as_os_str()]);
        let agent = node.agent.start().unwrap();
        let mut victims: Vec<_> = (0..VICTIMS).map(|_| node.workload().unwrap()).collect();
        "backup-admin".clone_into(&mut victims[DECOY].pod.service_account);
        let thief = Pod::create(sandbox).unwrap();
        let thief =
            Container::start_with_host_path(sandbox, &thief, &sandbox.kubelet_root()).unwrap();
        let bystander = Pod::create(sandbox).unwrap();
        // A replay begins to learn with the first line, the agent with its start.
        node.request_by(&bystander).unwrap();
        Self {
            sandbox,
            seed,
            learning,
            node,
            agent: Some(agent),
            dice: Rng::with_seed(seed),
            victims,
            bystander,
            thief,
            latest: BTreeMap::new(),
            opened: BTreeSet::new(),
            disordered: BTreeSet::new(),
            held_back: Vec::new(),
            held_since: Instant::now(),
            story: String::new(),
        }
    }

    /// Whether this pod is one of it.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.bystander.uid == uid || self.victims.iter().any(|it| it.pod.uid == uid)
    }

    /// Whether all of this pod came in the order in which it happened.
    pub(crate) fn is_in_order(&self, uid: &str) -> bool {
        !self.disordered.contains(uid)
    }

    /// The rules file of both programs.
    pub(crate) fn rules(&self) -> PathBuf {
        rules(self.sandbox)
    }

    /// What happened, one event a line.
    pub(crate) fn story(&self) -> &str {
        &self.story
    }

    fn note(&mut self, what: &str, uid: &str) {
        let _ = writeln!(self.story, "{} {what} {uid}", Timestamp::now());
    }

    fn act(&mut self) {
        let victim = self.dice.usize(0..VICTIMS);
        let manner = self.dice.u8(0..5);
        match self.dice.u8(0..20) {
            0..5 => {
                let path = match self.dice.u8(0..5) {
                    0 => format!("{SERVICE_ACCOUNT_FOLDER}/ca.crt"),
                    _ => TOKEN_PATH.to_owned(),
                };
                self.exec(victim, manner, &path);
            }
            5 => self.read_on_host(victim),
            6 => self.steal(victim),
            7..15 => {
                let pod = self.victims[victim].pod.clone();
                self.ask(&pod, victim == DECOY);
            }
            15 => self.ask(&self.bystander.clone(), false),
            16..18 => self.mint(),
            _ => {
                let pod = self.victims[victim].pod.clone();
                self.note("session in", &pod.uid);
                self.node.audit.append(&AuditLine::session(&pod).unwrap()).unwrap();
            }
        }
    }

    /// Somebody, or the workload itself, reads a file of the pod's volume in its container.
    fn exec(&mut self, victim: usize, manner: u8, path: &str) {
        let uid = self.victims[victim].pod.uid.clone();
        self.note(&format!("open {manner} of {path} in"), &uid);
        let container = &self.victims[victim].container;
        let read = match manner {
            0 | 1 => container.exec_tty(&["cat", path]),
            2 => container.exec_tty_without_errors(&["cat", path]),
            3 => container.exec(&["cat", path]),
            _ => container.workload(&format!("cat {path}")),
        };
        assert!(read.unwrap().success());
        self.is_opened(uid);
    }

    fn read_on_host(&mut self, victim: usize) {
        let pod = &self.victims[victim].pod;
        assert_eq!(fs::read_to_string(pod.volume().join("token")).unwrap(), pod.token);
        let uid = pod.uid.clone();
        self.note("read on the host, of", &uid);
        self.is_opened(uid);
    }

    fn steal(&mut self, victim: usize) {
        let pod = &self.victims[victim].pod;
        let path = pod.volume().join("token");
        let path = path.strip_prefix(self.sandbox.kubelet_root()).unwrap();
        let read = self.thief.workload(&format!("cat /host/{}", path.display())).unwrap();
        assert_eq!(read.output, pod.token);
        let uid = pod.uid.clone();
        self.note("stolen, of", &uid);
        self.is_opened(uid);
    }

    fn is_opened(&mut self, uid: String) {
        self.latest.insert(uid.clone(), Timestamp::now());
        self.opened.insert(uid);
    }

    /// A request with this pod's identity: its stages, some left out, some late, some twice.
    fn ask(&mut self, pod: &Pod, promptly: bool) {
        use Stage::{RequestReceived as Receipt, ResponseComplete as Complete, ResponseStarted};
        let (request, stages): (_, &[Stage]) = match self.dice.u8(0..8) {
            0..3 => (Request::ListPods, &[Complete]),
            3 => (Request::GetSecret, &[Receipt, Complete]),
            4 => (Request::ListNodes, &[Receipt, Complete]),
            5 => (Request::ReviewOwnRights, &[Receipt, Complete]),
            6 => (Request::GetVersion, &[Receipt, Complete]),
            _ => (Request::WatchPods, &[Receipt, ResponseStarted, Complete]),
        };
        // Policies leave receipts out; who is killed leaves no answer.
        let stages = match self.dice.u8(0..12) {
            0 => &stages[..1],
            1..7 if stages.len() > 1 => &stages[1..],
            _ => stages,
        };
        let agent = ["curl/8.5.0", "kubectl/v0.0.0"][self.dice.usize(0..2)];
        let address = ["10.89.0.3", "203.0.113.9"][self.dice.usize(0..2)];
        let mut received = Timestamp::now();
        if !promptly && self.opened.contains(&pod.uid) && self.dice.u8(0..6) == 0 {
            received -= SignedDuration::from_millis(self.dice.i64(1..400));
        }
        self.note(&format!("{request:?} {stages:?} at {received} by {agent} of"), &pod.uid);
        let mut id = None;
        for (place, stage) in (0_i64..).zip(stages) {
            let staged = received + SignedDuration::from_millis(place * 3);
            let line = AuditLine::recorded(request, *stage, pod).unwrap().at(received, staged);
            let id = id.get_or_insert_with(|| line.audit_id().to_owned());
            let text = line
                .with_audit_id(id)
                .replacing("kubectl/v0.0.0", agent)
                .replacing("10.89.0.3", address);
            let answered = *stage != Receipt;
            let line = |text| Line { text, uid: pod.uid.clone(), received, answered };
            if self.dice.u8(0..8) == 0 {
                self.put(line(text.clone()));
            }
            if !promptly && self.opened.contains(&pod.uid) && self.dice.u8(0..8) == 0 {
                if self.held_back.is_empty() {
                    self.held_since = Instant::now();
                }
                self.held_back.push(line(text));
            } else {
                self.put(line(text));
            }
        }
        if stages == [Receipt] {
            // It counts when no answer can come any more: when that is, depends on who waits.
            self.disordered.insert(pod.uid.clone());
        }
    }

    /// Somebody has a token minted, or is refused it.
    fn mint(&mut self) {
        let user = ["mallory", "jane", "system:kube-controller-manager"][self.dice.usize(0..3)];
        let mut line = AuditLine::mint(user, "shop", "cart").unwrap();
        if self.dice.bool() {
            line = line.replacing(r#""code":201"#, r#""code":403"#);
        }
        self.note("minted by", user);
        self.node.audit.append(&line).unwrap();
    }

    fn put(&mut self, Line { text, uid, received, answered }: Line) {
        if answered {
            let latest = self.latest.entry(uid.clone()).or_insert(received);
            if received < *latest {
                self.disordered.insert(uid.clone());
            }
            *latest = received.max(*latest);
        }
        self.node.audit.append(&text).unwrap();
    }

    /// Writes the lines that were held back, in any order.
    fn release(&mut self) {
        let mut lines = std::mem::take(&mut self.held_back);
        self.dice.shuffle(&mut lines);
        for line in lines {
            self.note("a late line of", &line.uid.clone());
            self.put(line);
        }
        self.held_since = Instant::now();
    }

    /// Kills the agent and starts it again; what is asked meanwhile is read later.
    fn kill(&mut self) {
        self.release();
        self.node.wait_until_seen(&self.victims[0]).unwrap();
        self.note("killed", "");
        self.agent.take().unwrap().kill().unwrap();
        for victim in 1..4 {
            let pod = self.victims[victim].pod.clone();
            self.ask(&pod, true);
        }
        self.agent = Some(self.node.agent.start().unwrap());
        self.note("started", "");
    }
}

fn rules(sandbox: &Sandbox) -> PathBuf {
    sandbox.folder().join("rules.yaml")
}

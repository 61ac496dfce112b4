//! Event time defines the result: however late inputs arrive within the bounds, and wherever the
//! agent is killed and started again, the summaries are those of a replay in the order of event time.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::{audit::Stage, rules::Band};

const OTHER_POD: &str = "0b2d0f52-2c3f-4a39-8a39-5b8f3f1d7c11";
/// How much later than it happened a request's line may be read, seconds.
const LATE: u32 = 8;
/// How much later an open, seconds: the ring keeps them in order.
const OPEN_LATE: f64 = 0.5;

/// Something that happens.
#[derive(Clone, Debug)]
struct Event {
    /// Seconds, in tenths: nothing happens at the same moment as something else by chance alone.
    time: u32,
    what: What,
    /// How much later than `time` it arrives, thousandths of what is allowed.
    delay: u32,
}

#[derive(Clone, Debug)]
enum What {
    /// By one of three sessions, in one of two pods.
    Open { pod: bool, session: u32, grade: Grade },
    /// By one of three clients, with one of two pods' identity; perhaps each stage, perhaps twice.
    Request { pod: bool, client: u32, stages: u8, twice: bool },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let grade = prop_oneof![
        4 => Just(Grade::Interactive),
        1 => Just(Grade::Exec),
        1 => Just(Grade::Workload),
        1 => Just(Grade::Outside),
        1 => Just(Grade::Foreign),
    ];
    let open = (any::<bool>(), 0_u32..3, grade).prop_map(|(pod, session, grade)| What::Open {
        pod,
        session,
        grade,
    });
    let request = (any::<bool>(), 0_u32..3, 0_u8..3, any::<bool>())
        .prop_map(|(pod, client, stages, twice)| What::Request { pod, client, stages, twice });
    let what = prop_oneof![1 => open, 2 => request];
    let event = (0_u32..4_000, what, 0_u32..1_000).prop_map(|(time, what, delay)| Event {
        time,
        what,
        delay,
    });
    proptest::collection::vec(event, 1..40)
}

/// An input with the time of its arrival.
enum Input {
    Open(Open),
    Request(Request),
}

/// Who asks: some clients again and again, or each time one that is new for the pod.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clients {
    Few,
    New,
}

impl Clients {
    /// Where each is to be new, nothing has to be watched for before it is.
    fn settings(self) -> Settings {
        let settings = Settings::new("c");
        match self {
            Self::Few => settings,
            Self::New => Settings { learning: Micros(0), ..settings },
        }
    }
}

fn clients() -> impl Strategy<Value = Clients> {
    prop_oneof![Just(Clients::Few), Just(Clients::New)]
}

fn inputs(events: &[Event], clients: Clients, late: bool) -> Vec<(f64, Input)> {
    let mut inputs = Vec::new();
    for (number, event) in (0_u32..).zip(events) {
        // Apart by less than anything here is measured in.
        let time = f64::from(event.time) / 10.0 + f64::from(number) / 1e5;
        let share = if late { f64::from(event.delay) / 1e3 } else { 0.0 };
        match event.what {
            What::Open { pod, session, grade } => {
                let mut open = open(time);
                open.open.grade = grade;
                open.open.pod_uid = Some(if pod { POD } else { OTHER_POD }.to_owned());
                open.open.entry.key.tgid = session;
                let delay = if late { OPEN_LATE } else { 0.0 };
                inputs.push((time + delay, Input::Open(open)));
            }
            What::Request { pod, client, stages, twice } => {
                let stages: &[Stage] = match stages {
                    0 => &[Stage::ResponseComplete],
                    1 => &[Stage::RequestReceived, Stage::ResponseComplete],
                    _ => &[Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete],
                };
                for (place, stage) in (0_u32..).zip(stages) {
                    let mut request = request(time, &format!("r{number}"));
                    request.record.stage = *stage;
                    let more = f64::from(place) / 100.0;
                    request.record.stage_timestamp = at(time + more);
                    request.record.response_status = match (stage, place) {
                        (Stage::RequestReceived, _) => None,
                        // What had begun well has ended otherwise.
                        (_, 2) => {
                            Some(audit::ResponseStatus { code: Some(504), ..Default::default() })
                        }
                        _ => request.record.response_status,
                    };
                    let client = if clients == Clients::New { number + 3 } else { client };
                    request.record.user_agent = Some(format!("client-{client}"));
                    if client == 0 {
                        let resource = Some("secrets".to_owned());
                        let object = audit::ObjectRef { resource, ..Default::default() };
                        request.record.object_ref = Some(object);
                        request.record.verb = "delete".into();
                    }
                    let uid = if pod { POD } else { OTHER_POD }.to_owned();
                    request.record.user.extra.insert(audit::POD_UID.into(), vec![uid]);
                    for _ in 0..=u8::from(twice) {
                        let delay = share * (f64::from(LATE) - 0.1);
                        inputs.push((time + more + delay, Input::Request(request.clone())));
                    }
                }
            }
        }
    }
    inputs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    inputs
}

/// What is compared of each incident: its band, requests with their outcome, opens, and the request that
/// it is summed up with, where all are new (what comes late may be what makes another one the workload's
/// own); reads without any request as well.
type Summary = (Band, Vec<(RequestId, Option<u16>)>, u64, Option<RequestId>);
/// By id and rule.
type Told = BTreeMap<(String, RuleId), Summary>;

/// Puts inputs through; at each of these places the agent is killed and started again.
fn summaries(inputs: &[(f64, Input)], clients: Clients, lateness: f64, kills: &[usize]) -> Told {
    let journal = Memory::default();
    let mut scene = scene_with(clients.settings(), journal.clone());
    scene.watch(0.0);
    let mut told = Told::new();
    let mut logged = HashSet::new();
    let mut take = |findings: &[Finding]| {
        let is_end = |it: &&Finding| it.kind == Kind::Incident || it.rule == RuleId::TokenRead;
        // The alert log takes each id once.
        for finding in
            findings.iter().filter(is_end).filter(|it| logged.insert(it.event_id.clone()))
        {
            let outcome = |it: &Listed| (it.id, it.code);
            let mut requests: Vec<_> = finding.requests.iter().map(outcome).collect();
            requests.sort();
            assert_eq!(requests.len() as u64, finding.request_count);
            if finding.rule == RuleId::TokenReadFromOutside {
                // Which open explains a request best may change while opens arrive after it, and
                // what R3 has listed stays listed.
                requests.clear();
            }
            let id = (finding.incident_id.clone(), finding.rule);
            let worst = finding.request.as_ref().filter(|_| clients == Clients::New);
            let worst = worst.map(|it| it.id);
            let before = told.insert(id, (finding.band, requests, finding.open_count, worst));
            assert_eq!(before, None, "told twice under different ids");
        }
    };
    for (number, (arrival, input)) in inputs.iter().enumerate() {
        if kills.contains(&number) {
            take(&scene.findings);
            let now = scene.now;
            scene = scene_with(clients.settings(), journal.clone());
            scene.watch(0.0);
            let entries = journal.0.take();
            for entry in entries.iter().cloned() {
                scene.correlator.restore(entry, now, &mut scene.findings);
            }
            // What restoring adds again is there already.
            *journal.0.borrow_mut() = entries;
            // The checkpoint moves once a second at most, and had not for a while: lines come again.
            let recent = inputs.partition_point(|(earlier, _)| *earlier < arrival - 1.0);
            let from = recent.min(number.saturating_sub(10));
            for (_, input) in inputs.get(from..number).unwrap_or_default() {
                if let Input::Request(request) = input {
                    scene.correlator.request(request.clone(), now, &mut scene.findings);
                }
            }
        }
        scene.now = at(*arrival);
        scene.correlator.advance(at(arrival - lateness), at(*arrival), &mut scene.findings);
        scene.correlator.compact_journal(at(*arrival)).unwrap();
        match input {
            Input::Open(open) => {
                scene.correlator.open(open.clone(), at(*arrival), &mut scene.findings);
            }
            Input::Request(request) => {
                scene.correlator.request(request.clone(), at(*arrival), &mut scene.findings);
            }
        }
    }
    scene.correlator.advance(Micros::MAX, at(1e6), &mut scene.findings);
    let losses = Losses { merged: 0, overtaken: 0, ..scene.correlator.losses() };
    assert_eq!(losses, Losses::default());
    take(&scene.findings);
    told
}

proptest! {
    // More with PROPTEST_CASES.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    #[test]
    fn lateness_within_the_bounds_changes_no_summary(events in events(), clients in clients()) {
        let told = |late| {
            summaries(&inputs(&events, clients, late), clients, f64::from(LATE), &[])
        };
        prop_assert_eq!(told(true), told(false));
    }

    #[test]
    fn a_kill_anywhere_changes_no_summary(
        events in events(),
        clients in clients(),
        kills in proptest::collection::vec(0_usize..60, 1..4),
    ) {
        let inputs = inputs(&events, clients, true);
        let expected = summaries(&inputs, clients, f64::from(LATE), &[]);
        prop_assert_eq!(summaries(&inputs, clients, f64::from(LATE), &kills), expected);
    }

    /// Without an exposure an incident's id is that of the request which came first, so all but that is
    /// compared; and how often it can differ is counted.
    #[test]
    fn mints_that_come_late_are_of_the_same_incidents(
        mints in proptest::collection::vec((0_u32..4, 0_u32..200, 0_u32..80, any::<bool>()), 1..20),
    ) {
        let incidents = |late: bool| {
            let mut arrivals: Vec<_> = (0_u32..)
                .zip(&mints)
                .map(|(number, (hour, tenths, delay, granted))| {
                    // About when an hour is over.
                    let time = f64::from(hour * 3_600) + f64::from(*tenths) / 10.0;
                    let time = time + f64::from(number) / 1e5;
                    let code = if *granted { 201 } else { 403 };
                    let late = if late { f64::from(*delay) / 10.0 } else { 0.0 };
                    (time + late, mint(time, &format!("m{number}"), "mallory", code))
                })
                .collect();
            arrivals.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            let mut scene = scene();
            for (arrival, mint) in arrivals {
                let watermark = at(arrival - f64::from(LATE));
                scene.correlator.advance(watermark, at(arrival), &mut scene.findings);
                scene.correlator.request(mint, at(arrival), &mut scene.findings);
            }
            scene.until(1e6);
            let told = scene.told_by(RuleId::TokenRequestByUser, Kind::Incident);
            let ids = |it: &Finding| it.requests.iter().map(|it| it.id).collect::<Vec<_>>();
            let told: Vec<_> = told.iter().map(|it| (it.first, it.last, it.band, ids(it))).collect();
            (told, scene.correlator.losses().overtaken)
        };
        let (expected, overtaken) = incidents(false);
        prop_assert_eq!(overtaken, 0);
        prop_assert_eq!(incidents(true).0, expected);
    }
}

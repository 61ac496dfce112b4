//! Reads of made-up containers, minutes after the boot of the machine.

use proptest::prelude::*;

use super::{
    super::pods::{Container, ContainerKind},
    *,
};

const MINUTE: u64 = 60_000_000_000;
const PERIOD: Micros = Micros::from_secs(10 * 60);

/// A memory of an agent that started at this minute.
fn learned_since(since: u64) -> Learned {
    Learned::new(PERIOD, since * MINUTE, AttributionMetrics::default())
}

/// A container as the index has it.
fn container(image: &str, digest: Option<&str>) -> Container {
    Container {
        name: "main".into(),
        kind: ContainerKind::Main,
        image: image.into(),
        digest: digest.map(Into::into),
        ids: Vec::new(),
        blocked: false,
        hooks: Vec::new(),
    }
}

/// Whether a read at this minute is foreign, of a container started at `start` that no index has.
fn bare(learned: &mut Learned, id: &str, start: u64, at: u64, executable: &str) -> bool {
    of(learned, id, None, start, at, executable)
}

fn of(
    learned: &mut Learned,
    container_id: &str,
    container: Option<&Container>,
    start: u64,
    at: u64,
    executable: &str,
) -> bool {
    let (ktime_ns, main_start_ns) = (at * MINUTE, start * MINUTE);
    learned.is_foreign(OwnRead { container_id, container, executable, ktime_ns, main_start_ns })
}

/// What a new agent, started at this minute, goes on with.
fn restarted(learned: &mut Learned, since: u64) -> Learned {
    let saved = serde_json::to_string(&learned.take_changed().unwrap_or_default()).unwrap();
    let mut next = learned_since(since);
    next.restore(serde_json::from_str(&saved).unwrap());
    next
}

#[test]
fn what_reads_while_a_container_is_young_is_its_own_and_the_rest_is_foreign_later() {
    let mut it = learned_since(0);
    assert!(!bare(&mut it, "c", 100, 100, "/bin/app"));
    assert!(!bare(&mut it, "c", 100, 109, "/bin/init"));
    for (at, executable, foreign) in [
        (110, "/bin/app", false),
        (110, "/bin/sh", true),
        (5_000, "/bin/sh", true),
        (5_000, "/bin/init", false),
    ] {
        assert_eq!(bare(&mut it, "c", 100, at, executable), foreign, "{executable} at {at}");
    }
}

#[test]
fn a_workload_that_never_reads_has_no_executable_of_its_own() {
    assert!(bare(&mut learned_since(0), "c", 100, 110, "/bin/sh"));
}

#[test]
fn a_container_that_was_there_before_the_agent_is_learned_from_the_agents_start() {
    let mut it = learned_since(1_000);
    assert!(!bare(&mut it, "c", 10, 1_009, "/bin/app"));
    assert!(bare(&mut it, "c", 10, 1_010, "/bin/sh"));
    assert!(!bare(&mut it, "c", 10, 1_011, "/bin/app"));
}

#[test]
fn a_new_container_of_a_learned_workload_is_known_at_once() {
    let mut it = learned_since(0);
    let cart = container("cart:1", None);
    assert!(!of(&mut it, "a", Some(&cart), 100, 101, "/bin/app"));
    // Learning has ended with this one.
    assert!(!of(&mut it, "a", Some(&cart), 100, 111, "/bin/app"));
    assert!(!of(&mut it, "b", Some(&cart), 200, 200, "/bin/app"));
    assert!(of(&mut it, "b", Some(&cart), 200, 200, "/bin/sh"));
    // Another image, or the same under another name, has habits of its own.
    assert!(!of(&mut it, "c", Some(&container("cart:2", None)), 200, 200, "/bin/sh"));
    let sidecar = Container { name: "sidecar".into(), ..cart };
    assert!(!of(&mut it, "d", Some(&sidecar), 200, 200, "/bin/sh"));
}

#[test]
fn a_workload_of_which_no_container_was_watched_from_its_start_goes_on_learning() {
    let mut it = learned_since(50);
    let cart = container("cart:1", None);
    // Its start, and what it read with then, was not seen.
    assert!(of(&mut it, "a", Some(&cart), 10, 100, "/bin/app"));
    assert!(!of(&mut it, "b", Some(&cart), 200, 200, "/bin/app"));
    assert!(!of(&mut it, "a", Some(&cart), 10, 300, "/bin/app"));
}

#[test]
fn another_image_under_the_same_tag_is_learned_anew() {
    let mut it = learned_since(0);
    let [one, two] = ["sha256:1", "sha256:2"].map(|digest| container("cart", Some(digest)));
    of(&mut it, "a", Some(&one), 100, 100, "/bin/app");
    of(&mut it, "a", Some(&one), 100, 110, "/bin/app");
    assert!(of(&mut it, "b", Some(&one), 200, 200, "/bin/new"));
    assert!(!of(&mut it, "c", Some(&two), 200, 200, "/bin/new"));
    assert!(!of(&mut it, "c", Some(&two), 200, 210, "/bin/new"));
    assert!(of(&mut it, "d", Some(&two), 300, 300, "/bin/sh"));
}

#[test]
fn what_a_container_read_with_before_an_index_described_it_is_known() {
    let mut it = learned_since(0);
    let cart = container("cart:1", None);
    assert!(!of(&mut it, "a", None, 100, 100, "/bin/init"));
    assert!(!of(&mut it, "a", Some(&cart), 100, 150, "/bin/init"));
    assert!(of(&mut it, "a", Some(&cart), 100, 150, "/bin/sh"));
}

#[test]
fn a_restart_forgets_nothing_and_is_no_chance_for_what_is_not_learned() {
    let mut it = learned_since(0);
    let cart = container("cart:1", None);
    of(&mut it, "a", Some(&cart), 100, 101, "/bin/app");
    of(&mut it, "a", Some(&cart), 100, 111, "/bin/app");
    bare(&mut it, "c", 100, 101, "/bin/job");
    let mut next = restarted(&mut it, 150);
    assert!(!of(&mut next, "a", Some(&cart), 100, 151, "/bin/app"));
    assert!(of(&mut next, "a", Some(&cart), 100, 151, "/bin/sh"));
    assert!(!bare(&mut next, "c", 100, 170, "/bin/job"));
    assert!(bare(&mut next, "c", 100, 170, "/bin/sh"));
}

#[test]
fn it_is_to_be_written_only_when_it_changed() {
    let mut it = learned_since(0);
    assert_eq!(it.take_changed(), None);
    bare(&mut it, "c", 100, 101, "/bin/app");
    assert!(it.take_changed().is_some());
    bare(&mut it, "c", 100, 102, "/bin/app");
    assert_eq!(it.take_changed(), None);
}

#[test]
fn a_workload_that_reads_with_everything_has_nothing_foreign() {
    let mut it = learned_since(0);
    for number in 0..=EXECUTABLES {
        assert!(!bare(&mut it, "c", 100, 101, &format!("/bin/{number}")));
    }
    assert!(!bare(&mut it, "c", 100, 200, "/bin/sh"));
    assert_eq!(it.workloads.peek(&Workload::Container("c".into())).unwrap().executables.len(), 32);
}

proptest! {
    #[test]
    fn it_stays_within_bounds_and_what_is_saved_is_what_is_there(
        reads in proptest::collection::vec((0_u32..2_000, 0_u32..40), 0..3_000)
    ) {
        let mut it = learned_since(0);
        for (id, executable) in reads {
            bare(&mut it, &id.to_string(), 1, 2, &format!("/bin/{executable}"));
        }
        let saved = it.take_changed().unwrap_or_default();
        prop_assert!(saved.workloads.len() <= WORKLOADS.get());
        let mut next = learned_since(0);
        next.restore(saved.clone());
        next.changed = true;
        prop_assert_eq!(next.take_changed().unwrap(), saved);
    }
}

//! The rulebook over the life of an agent: its file changes, breaks, goes away and comes back; what
//! was swallowed outlives restarts.

use std::{fs, path::Path};

use prometheus_client::{encoding::text::encode, registry::Registry};

use super::{RulebookKeeper, RulebookMetrics, RulesFile, RulesFileError, read_hits};
use crate::{
    correlation::Swallowed,
    rules::{
        catalogue::RuleId,
        exceptions::{ExceptionId, Subject},
    },
    time::Micros,
};

const NOW: Micros = Micros::from_secs(1_800_000_000);

struct Agent {
    keeper: RulebookKeeper,
    registry: Registry,
}

fn start(directory: &Path) -> Agent {
    let file = RulesFile::open(Some(&directory.join("rules.yaml"))).unwrap();
    let metrics = RulebookMetrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    Agent { keeper: RulebookKeeper::open(file, directory, metrics, NOW), registry }
}

impl Agent {
    /// Two turns of the clock: a change must be found unchanged.
    fn turn(&mut self) {
        self.keeper.keep_up(NOW);
        self.keeper.keep_up(NOW);
    }

    fn swallows(&self, namespace: &str) -> Option<ExceptionId> {
        let subject = Subject { namespace: Some(namespace), ..Subject::default() };
        self.keeper.current().exceptions.swallowing(RuleId::TokenRead, &subject, NOW)
    }

    /// An exception swallowed what has this id.
    fn swallowed(&mut self, exception: &ExceptionId, id: &str, now: Micros) {
        let hit = Swallowed { exception: exception.clone(), id: id.to_owned() };
        self.keeper.swallowed(vec![hit], now);
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn write(directory: &Path, namespaces: &[&str]) {
    let entry = |name: &&str| {
        format!("- {{name: {name}, rule: token-read, namespace: {name}, reason: tested}}\n")
    };
    let entries: String = namespaces.iter().map(entry).collect();
    fs::write(directory.join("rules.yaml"), format!("exceptions:\n{entries}")).unwrap();
}

#[test]
fn a_new_version_is_in_force_once_it_is_no_longer_being_written() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &["shop"]);
    let mut agent = start(directory.path());
    agent.turn();
    assert!(agent.swallows("shop").is_some() && agent.swallows("bank").is_none());
    write(directory.path(), &["bank", "zoo"]);
    agent.keeper.keep_up(NOW);
    assert!(agent.swallows("bank").is_none(), "it was seen once");
    agent.keeper.keep_up(NOW);
    assert!(agent.swallows("shop").is_none() && agent.swallows("bank").is_some());
    // As editors and ConfigMaps do it.
    let other = tempfile::tempdir_in(directory.path()).unwrap();
    write(other.path(), &["mine"]);
    fs::rename(other.path().join("rules.yaml"), directory.path().join("rules.yaml")).unwrap();
    agent.turn();
    assert!(agent.swallows("bank").is_none() && agent.swallows("mine").is_some());
    agent.turn();
    let metrics = agent.metrics();
    assert!(metrics.contains("tokentrail_rules_reloads_total 2"), "{metrics}");
    assert!(metrics.contains("tokentrail_rules_exceptions 1"), "{metrics}");
}

#[test]
fn a_version_that_is_refused_leaves_the_earlier_one_in_force_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules.yaml");
    write(directory.path(), &["shop"]);
    let mut agent = start(directory.path());
    let refused = |agent: &mut Agent, says: &str| {
        agent.turn();
        assert!(agent.swallows("shop").is_some(), "{says}");
        let why = agent.keeper.degraded().unwrap();
        assert!(why.contains(says) && why.contains("rules.yaml"), "{why}");
        assert!(agent.metrics().contains("tokentrail_rules_file_refused 1"), "{says}");
    };
    let cases: [(&[u8], &str); 4] = [
        (b"exceptions: [\n", "not valid"),
        (b"exceptions: [{name: a, rule: token-read, pod: b}]", "exception a: it has no reason"),
        (b"decoys: [\xff]", "UTF-8"),
        (&[b'#'; (256 << 10) + 1], "more than 262144 bytes"),
    ];
    for (text, says) in cases {
        fs::write(&path, text).unwrap();
        refused(&mut agent, says);
    }
    fs::remove_file(&path).unwrap();
    refused(&mut agent, "No such file");
    fs::create_dir(&path).unwrap();
    refused(&mut agent, "not a regular file");
    fs::remove_dir(&path).unwrap();
    write(directory.path(), &["bank"]);
    agent.turn();
    assert_eq!(agent.keeper.degraded(), None);
    assert!(agent.swallows("shop").is_none() && agent.swallows("bank").is_some());
    assert!(agent.metrics().contains("tokentrail_rules_file_refused 0"));
}

#[test]
fn what_was_swallowed_outlives_a_restart_and_goes_with_its_exception() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &["shop", "bank"]);
    let mut agent = start(directory.path());
    let shop = agent.swallows("shop").unwrap();
    let bank = agent.swallows("bank").unwrap();
    agent.swallowed(&shop, "a", NOW);
    agent.swallowed(&shop, "b", NOW + Micros(7));
    let metrics = agent.metrics();
    for line in [
        "tokentrail_rules_exception_hits_total{exception=\"shop\"} 2",
        "tokentrail_rules_exception_hits_total{exception=\"bank\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    drop(agent);

    let mut agent = start(directory.path());
    assert_eq!(agent.keeper.swallowed_before().collect::<Vec<_>>(), ["a", "b"]);
    agent.swallowed(&shop, "c", NOW + Micros(3));
    let hit = read_hits(directory.path()).unwrap().of(&shop).unwrap();
    assert_eq!((hit.count, hit.last, hit.since), (3, Some(NOW + Micros(7)), NOW));
    write(directory.path(), &["bank"]);
    agent.turn();
    agent.swallowed(&shop, "d", NOW);
    agent.turn();
    let hits = read_hits(directory.path()).unwrap();
    assert!(hits.of(&shop).is_none() && hits.of(&bank).is_some());
    assert!(!agent.metrics().contains("shop"), "{}", agent.metrics());
}

#[test]
fn counts_that_cannot_be_understood_are_a_new_beginning() {
    for content in
        ["", "{\"version\":1,\"exceptions\":{\"a\":{\"cou", "{\"version\":2,\"exceptions\":{}}"]
    {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &["shop"]);
        fs::write(directory.path().join("exception-hits.json"), content).unwrap();
        let error = read_hits(directory.path()).unwrap_err().to_string();
        assert!(error.contains("exception-hits.json"), "{error}");
        let mut agent = start(directory.path());
        let shop = agent.swallows("shop").unwrap();
        agent.swallowed(&shop, "a", NOW);
        assert_eq!(read_hits(directory.path()).unwrap().of(&shop).unwrap().count, 1, "{content}");
    }
}

#[test]
fn without_a_file_all_is_default_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = RulesFile::open(None).unwrap();
    let mut keeper = RulebookKeeper::open(file, directory.path(), RulebookMetrics::default(), NOW);
    keeper.keep_up(NOW);
    assert_eq!(*keeper.current(), crate::rules::rulebook::Rulebook::default());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_not_there_at_the_start_is_an_error_that_names_it() {
    let error = RulesFile::open(Some(Path::new("/no/such.yaml"))).unwrap_err();
    assert!(matches!(error, RulesFileError::Read { .. }), "{error}");
    assert!(error.to_string().contains("/no/such.yaml"));
}

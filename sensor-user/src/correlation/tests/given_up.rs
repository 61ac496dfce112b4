//! Exposures that give way to others: the read is told early, and a flood of them is no flood of alerts.

use super::*;

/// An open of its own session in this pod.
fn read(seconds: f64, pod: &str, session: u32) -> Open {
    let mut open = open(seconds);
    open.open.pod_uid = Some(pod.to_owned());
    open.open.entry.key.tgid = session;
    open
}

fn reads<J: Journal>(scene: &Scene<J>, kind: Kind) -> Vec<&Finding> {
    scene.told_by(RuleId::TokenRead, kind)
}

#[test]
fn a_read_whose_exposure_gives_way_is_told_at_once_and_says_why() {
    let mut scene = scene();
    for session in 0..16 {
        scene.open(read(100.0 + f64::from(session), POD, session));
    }
    assert!(scene.findings.is_empty());
    scene.open(read(120.0, POD, 16));
    let [told] = reads(&scene, Kind::Alert)[..] else { panic!("{:#?}", scene.findings) };
    assert_eq!(told.open.as_ref().unwrap().open.time, at(100.0));
    assert!(told.early);
    let reasons = crate::alert::evidence::reasons(told, "node");
    assert!(reasons.iter().any(|why| why.contains("let go early")), "{reasons:?}");
    // The others are told when nothing can follow them any more, each by itself.
    scene.until(1_000.0);
    let alerts = reads(&scene, Kind::Alert);
    assert_eq!((alerts.len(), alerts.iter().filter(|it| it.early).count()), (17, 1));
}

#[test]
fn nothing_is_told_early_of_what_says_nothing_or_is_told_otherwise() {
    for what in ["ca.crt", "outside", "R1"] {
        let mut scene = scene();
        for session in 0..40 {
            let mut open = read(100.0, POD, session);
            match what {
                "ca.crt" => open.open.file = TokenFile::CaCert,
                "outside" => open.open.grade = Grade::Outside,
                _ => {}
            }
            scene.open(open);
            if what == "R1" && session == 0 {
                scene.request(request(100.5, "r"));
            }
        }
        assert!(scene.correlator.losses().exposures > 0);
        assert!(reads(&scene, Kind::Alert).is_empty(), "{what}: {:#?}", scene.findings);
    }
}

#[test]
fn a_flood_of_exposures_is_one_alert_for_a_pod_and_hour_and_bounded_in_all() {
    let mut scene = scene_with(Settings { exposures_per_pod: 2, ..Settings::new("c") }, NoJournal);
    for pod in 0..300 {
        for session in 0..10 {
            scene.open(read(100.0, &format!("pod-{pod}"), session));
        }
    }
    assert_eq!(reads(&scene, Kind::Alert).len(), 256);
    let losses = scene.correlator.losses();
    assert_eq!((losses.exposures, losses.reads, losses.hourly), (300 * 8, (300 - 256) * 8, 0));
    scene.until(10_000.0);
    let ended = reads(&scene, Kind::Incident);
    assert_eq!((ended.len(), ended.iter().map(|it| it.open_count).sum::<u64>()), (256, 256 * 8));
}

#[test]
fn reads_of_a_pod_that_gives_way_to_another_are_told() {
    let mut scene = scene_with(Settings { pods: 2, ..Settings::new("c") }, NoJournal);
    scene.open(read(100.0, "a", 0)).open(read(101.0, "b", 0)).open(read(102.0, "c", 0));
    let [told] = reads(&scene, Kind::Alert)[..] else { panic!("{:#?}", scene.findings) };
    assert_eq!(told.open.as_ref().unwrap().open.pod_uid.as_deref(), Some("a"));
}

#[test]
fn what_was_told_early_is_told_under_the_same_id_and_counted_once_after_a_restart() {
    let settings = || Settings { exposures_per_pod: 2, ..Settings::new("c") };
    // While the exposures last, and when only what was told early does.
    for restart in [101.0, 500.0] {
        let journal = Memory::default();
        let mut before = scene_with(settings(), journal.clone());
        for session in 0..5 {
            before.open(read(100.0, POD, session));
        }
        before.until(restart);
        before.correlator.compact_journal(at(restart)).unwrap();
        let mut after = scene_with(settings(), journal.clone());
        let entries = journal.0.take();
        for entry in entries.iter().cloned() {
            after.correlator.restore(entry, at(restart), &mut after.findings);
        }
        assert!(journal.0.borrow().is_empty(), "what is restored is there already");
        assert_eq!(after.findings[0].event_id, reads(&before, Kind::Alert)[0].event_id);
        after.until(500.0);
        for session in 0..3 {
            after.open(read(600.0, POD, session));
        }
        assert_eq!(reads(&after, Kind::Alert).iter().filter(|it| it.early).count(), 1);
        after.until(10_000.0);
        assert_eq!(reads(&after, Kind::Incident)[0].open_count, 4, "restart at {restart}");
    }
}

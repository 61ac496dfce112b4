//! What the kernel side makes of a flood: repeats are counted, shares of the ring are kept, and what
//! is lost is said. Part of the kernel tests.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokentrail::kernel::{
    Loss,
    clock::{Sampler as _, System},
};
use tokentrail_ebpf::OpenRecord;

use super::{Bench, Cgroup, Volume};

#[tokio::test]
async fn what_a_process_opens_again_within_a_second_is_counted_and_the_last_time_told() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    let opens = 1_000;
    let mut before_last = 0;
    let start = Instant::now();
    for _ in 0..opens {
        (before_last, _) = System.sample();
        fs::File::open(&token).unwrap();
    }
    let seconds = start.elapsed().as_secs();

    let mut records = Vec::new();
    let counted = |records: &[OpenRecord]| records.iter().map(|it| 1 + it.repeats).sum::<u64>();
    let deadline = Instant::now() + Duration::from_secs(20);
    while counted(&records) < opens && Instant::now() < deadline {
        // What nothing follows is told after its second, which wakes nobody up.
        let _ = tokio::time::timeout(Duration::from_millis(20), bench.sensor.ready()).await;
        records.extend(bench.records_of(&token));
    }
    assert_eq!(counted(&records), opens, "{records:?}");
    // One at the start of each second, and the last one.
    assert!(records.len() as u64 <= seconds + 2, "{} in {seconds} s", records.len());
    let last = records.last().unwrap();
    assert!(last.ktime_ns >= before_last, "{} {before_last}", last.ktime_ns);
    assert!(bench.metrics.repeats_total() >= opens - records.len() as u64);
}

#[tokio::test]
async fn an_open_that_differs_in_what_it_is_judged_by_repeats_nothing() {
    let volume = Volume::new();
    let mut bench = Bench::start().await;
    let token = volume.path("token");
    // Who opens to write only is not taken for a reader.
    fs::File::options().write(true).open(&token).unwrap();
    fs::File::open(&token).unwrap();
    fs::File::open(volume.path("ca.crt")).unwrap();
    let other = Command::new("/bin/cat").arg(&token).output().unwrap();
    assert!(other.status.success());

    assert_eq!(bench.records_of(&token).len(), 3, "to write, to read, by another process");
    let mut bench = Bench::start().await;
    fs::File::open(&token).unwrap();
    assert_eq!(bench.records_of(&token).len(), 1, "a sensor that is new knows of none");
}

#[tokio::test]
async fn whoever_opens_too_many_files_loses_records_of_its_own_and_they_are_counted() {
    let (volume, decoys) = (Volume::new(), Volume::new());
    let files = 2_000;
    let decoy = |number: u64| decoys.path(&format!("..{number}")).join("token");
    for file in (0..files).map(decoy) {
        fs::create_dir(file.parent().unwrap()).unwrap();
        fs::File::create(file).unwrap();
    }
    let mut bench = Bench::start().await;
    bench.sensor.watch_devices(&BTreeSet::from([volume.device()])).unwrap();
    let mut kept = 0_u64;
    for number in 0..files {
        fs::File::open(decoy(number)).unwrap();
        // As an agent does; else what a slow machine takes for this would fill the ring.
        if number % 100 == 99 {
            bench.sensor.drain(|record| kept += u64::from(record.s_dev == decoys.device()));
        }
    }
    let flooded = bench.metrics.lost_total(Loss::Flood);
    assert!(flooded > 0, "{files} records are more than the share of one session");
    assert_eq!(kept + flooded, files);
    assert_eq!(bench.metrics.lost_total(Loss::RingFull), 0, "and less than the ring holds");

    // What is no volume takes nothing of what volumes have.
    fs::File::open(volume.path("token")).unwrap();
    assert_eq!(bench.records_of(&volume.path("token")).len(), 1);
}

#[tokio::test]
async fn no_other_file_of_a_volume_hides_its_token() {
    let volume = Volume::new();
    let token = volume.path("token");
    let number = |path: &Path| fs::metadata(path).unwrap().ino();
    let mut others: Vec<_> = (0..2_000).map(|at| volume.path(&format!("file-{at}"))).collect();
    for file in &others {
        fs::File::create(file).unwrap();
    }
    // The files of a volume are written one after the other: two of four are never alike in this.
    others.retain(|file| number(file) % 4 != number(&token) % 4);
    let mut bench = Bench::start().await;
    bench.sensor.watch_devices(&BTreeSet::from([volume.device()])).unwrap();
    for (at, file) in others.iter().enumerate() {
        fs::File::open(file).unwrap();
        // Seldom: what a slow machine takes for it gives the shares time to fill again.
        if at % 100 == 99 {
            bench.sensor.drain(|_| {});
        }
    }
    let lost = bench.metrics.lost_total(Loss::Flood);
    assert!(lost > 0, "{} opens are more than the shares of one session", others.len());
    // Of another process of the same session.
    let read = Command::new("/bin/cat").arg(&token).output().unwrap();
    assert!(read.status.success());
    assert_eq!(bench.records_of(&token).len(), 1);
}

#[tokio::test]
async fn a_full_ring_loses_records_and_says_how_many() {
    let (volume, decoys) = (Volume::new(), Volume::new());
    let mut bench = Bench::start().await;
    bench.sensor.watch_devices(&BTreeSet::from([volume.device()])).unwrap();
    let files = 480;
    for number in 0..files {
        let folder = decoys.path(&format!("..{number}"));
        fs::create_dir(&folder).unwrap();
        fs::File::create(folder.join("token")).unwrap();
        fs::File::create(volume.path(&format!("file-{number}"))).unwrap();
    }
    // What one session may have at once leaves room; what two have is more than the ring holds.
    let cgroup = Cgroup::new();
    let open_all = format!(
        "n=0; while [ $n -lt {files} ]; do : < {0}/file-$n; : < {1}/..$n/token; n=$((n+1)); done",
        volume.path("").display(),
        decoys.path("").display()
    );
    assert!(cgroup.session(&[&open_all]).status().unwrap().success());
    let devices = [volume.device(), decoys.device()];
    let mut kept = 0_u64;
    while bench.sensor.drain(|record| kept += u64::from(devices.contains(&record.s_dev))) > 0 {}
    let full = bench.metrics.lost_total(Loss::RingFull);
    let opens = 4 * files;
    assert!(full > 0, "{kept} records of {opens} opens fit");
    let lost = full + bench.metrics.lost_total(Loss::Flood);
    assert!(kept + lost >= opens, "{kept} kept and {lost} lost of {opens}");
}

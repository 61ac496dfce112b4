//! The routes of the running kernel: which work, why the others do not, how many instructions the verifier
//! goes through and how many an open that is no token's. Needs root and the BPF object.
//!
//! `TOKENTRAIL_EXPECT_ROUTES` names the routes that must work here, best first, and all others must not;
//! the VM sets it for each kernel. What was found is noted among the `facts`.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]
#![expect(clippy::print_stdout, reason = "what was found is for whoever reads a test's output")]

mod facts;
#[path = "routes/instructions.rs"]
mod instructions;

use std::{env, fs::File, time::Duration};

use aya::sys::{Stats, enable_stats};
use serde_json::json;
use tokentrail::kernel::{
    KernelMetrics, RouteChoice, Sensor, SensorConfig, SensorError, bench::attach_empty,
    btf::KERNEL_BTF, route_name,
};
use tokentrail_ebpf::Route;

use facts::note;
use instructions::Rejects;

const ROUTES: [(RouteChoice, &str); 3] =
    [(RouteChoice::Fexit, "fexit"), (RouteChoice::Kprobe, "kprobe"), (RouteChoice::Exit, "exit")];

/// How many instructions of the best route an open may run through whose file is on no tmpfs.
const BUDGET: usize = 60;
/// How many the verifier may go through, of the million after which it gives up: kernels differ tenfold.
const VERIFIED: u32 = 250_000;

/// The program of a route that was started: of `fexit` another one where the kernel refuses the first.
fn program(route: &str) -> String {
    let programs = [format!("open_{route}"), "open_direct".to_owned()];
    programs.into_iter().find(|it| instructions::loaded(it).is_some()).unwrap()
}

/// A sensor on this route alone, or why there is none.
async fn sensor(route: RouteChoice) -> Result<Sensor, SensorError> {
    let config = SensorConfig { route, ..SensorConfig::default() };
    Sensor::start(&config, KernelMetrics::default()).await
}

/// The same; a route that is refused is skipped.
async fn sensor_if_any(route: RouteChoice, name: &str) -> Option<Sensor> {
    sensor(route).await.inspect_err(|why| println!("skipped: {name} is refused here: {why}")).ok()
}

/// The routes that must work, if that is known.
fn expected() -> Option<Vec<String>> {
    let names = env::var("TOKENTRAIL_EXPECT_ROUTES").ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[tokio::test]
async fn the_routes_that_work_are_those_of_this_kernel_and_the_best_is_chosen() {
    let mut working = Vec::new();
    for (choice, name) in ROUTES {
        match sensor(choice).await {
            Ok(sensor) => {
                working.push(name.to_owned());
                let verified = instructions::verified(&program(name));
                assert!(verified.is_none_or(|count| count <= VERIFIED), "{name}: {verified:?}");
                let degraded = sensor.degraded();
                note(&json!({
                    "route": name, "works": true, "degraded": degraded, "verified": verified,
                }));
            }
            Err(error) => {
                let said = error.to_string();
                let names_its_reason = if let SensorError::NoRoute { tried } = &error {
                    tried.iter().all(|(_, why)| said.contains(why))
                } else if let SensorError::Btf(_) = error {
                    said.contains(KERNEL_BTF)
                } else {
                    matches!(error, SensorError::Load(_))
                };
                assert!(names_its_reason, "{name}: {said}");
                note(&json!({"route": name, "works": false, "refused": said}));
            }
        }
    }
    if let Some(expected) = expected() {
        assert_eq!(working, expected, "what was refused is told above");
    }
    let chosen = sensor(RouteChoice::Auto).await.ok().map(|it| route_name(it.route()).to_owned());
    assert_eq!(chosen.as_ref(), working.first());
}

#[tokio::test]
async fn an_ordinary_open_leaves_the_best_route_within_its_budget() {
    for (choice, name) in ROUTES {
        let Some(sensor) = sensor_if_any(choice, name).await else { continue };
        let Rejects { ordinary, longest, whole } =
            instructions::of_program(&program(name)).unwrap();
        assert!(ordinary <= longest && longest < whole, "{name}: {ordinary} {longest} {whole}");
        if sensor.route() == Route::Fexit {
            note(&json!({"route": name, "ordinary": ordinary, "longest": longest, "whole": whole}));
            assert!(ordinary <= BUDGET, "{ordinary} instructions, more than {BUDGET}");
        } else {
            // Its second question is another one.
            note(&json!({"route": name, "longest": longest, "whole": whole}));
        }
    }
}

/// How often a program ran and how long in all, once the kernel counts that.
fn runs(program: &str) -> (u64, Duration) {
    let program = instructions::loaded(program).unwrap();
    (program.run_count(), program.run_time())
}

#[tokio::test]
async fn what_an_ordinary_open_costs_is_told_beside_what_an_empty_program_does() {
    const OPENS: u64 = 1_000;
    const ROUNDS: usize = 21;
    let _counting = enable_stats(Stats::RunTime).unwrap();
    let ordinary = tempfile::NamedTempFile::new().unwrap();
    for (choice, name) in ROUTES {
        let Some(sensor) = sensor_if_any(choice, name).await else { continue };
        // On the same hooks at the same time, so that whatever else goes on slows down both.
        let _empty = attach_empty(sensor.route()).unwrap();
        let programs = [program(name), format!("empty_{name}")];
        let mut nanos = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let before = programs.each_ref().map(|it| runs(it));
            for _ in 0..OPENS {
                File::open(ordinary.path()).unwrap();
            }
            for (index, program) in programs.iter().enumerate() {
                let (count, time) = runs(program);
                let (count, time) = (count - before[index].0, time - before[index].1);
                assert!(count >= OPENS, "{program} ran {count} times");
                nanos[index].push(u64::try_from(time.as_nanos()).unwrap() / count);
            }
        }
        // A processor that was taken away for a moment is in one round alone.
        let [ours, empty] = nanos.map(|mut rounds| *rounds.select_nth_unstable(ROUNDS / 2).1);
        note(&json!({"route": name, "run_ns": ours, "empty_ns": empty}));
    }
}

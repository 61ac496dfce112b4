//! The routes of the running kernel: which work, why the others do not, and how many instructions of
//! them an open runs through that is no token's. Needs root and the BPF object.
//!
//! `TOKENTRAIL_EXPECT_ROUTES` names the routes that must work here, best first, and all others must not;
//! the VM sets it for each kernel. What was found is appended to the file that `TOKENTRAIL_FACTS`
//! names, a JSON object a line, of which `cargo xtask vm` makes its table.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

#[path = "routes/instructions.rs"]
mod instructions;

use std::{env, fs::File, io::Write as _};

use serde_json::{Value, json};
use tokentrail::kernel::{
    KernelMetrics, RouteChoice, Sensor, SensorConfig, SensorError, btf::KERNEL_BTF, route_name,
};
use tokentrail_ebpf::Route;

use instructions::Rejects;

const ROUTES: [(RouteChoice, &str); 3] =
    [(RouteChoice::Fexit, "fexit"), (RouteChoice::Kprobe, "kprobe"), (RouteChoice::Exit, "exit")];

/// What an open that is no token's may cost on the best route.
const BUDGET: usize = 60;

/// A sensor on this route alone, or why there is none.
async fn sensor(route: RouteChoice) -> Result<Sensor, SensorError> {
    let config = SensorConfig { route, ..SensorConfig::default() };
    Sensor::start(&config, KernelMetrics::default()).await
}

/// The routes that must work, if that is known.
fn expected() -> Option<Vec<String>> {
    let names = env::var("TOKENTRAIL_EXPECT_ROUTES").ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn note(fact: &Value) {
    println!("{fact}");
    if let Some(path) = env::var_os("TOKENTRAIL_FACTS") {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{fact}").unwrap();
    }
}

#[tokio::test]
async fn the_routes_that_work_are_those_of_this_kernel_and_the_best_is_chosen() {
    let mut working = Vec::new();
    for (choice, name) in ROUTES {
        match sensor(choice).await {
            Ok(sensor) => {
                working.push(name.to_owned());
                note(&json!({"route": name, "works": true, "degraded": sensor.degraded()}));
            }
            Err(error) => {
                let said = error.to_string();
                let names_its_reason = match &error {
                    SensorError::NoRoute { tried } => {
                        tried.iter().all(|(_, why)| said.contains(why))
                    }
                    SensorError::Btf(_) => said.contains(KERNEL_BTF),
                    SensorError::Load(why) => !why.is_empty(),
                    _ => false,
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
async fn an_open_that_is_no_tokens_leaves_the_best_route_within_its_budget() {
    for (choice, name) in ROUTES {
        let sensor = match sensor(choice).await {
            Ok(sensor) => sensor,
            Err(error) => {
                println!("skipped: {name} is refused here: {error}");
                continue;
            }
        };
        let Rejects { shortest, longest, whole } =
            instructions::of_program(&format!("open_{name}")).unwrap();
        note(&json!({"route": name, "shortest": shortest, "longest": longest, "whole": whole}));
        assert!(shortest <= longest && longest < whole, "{name}: {shortest} {longest} {whole}");
        if sensor.route() == Route::Fexit {
            assert!(longest <= BUDGET, "{longest} instructions, more than {BUDGET}");
        }
    }
}

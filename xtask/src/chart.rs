//! `cargo xtask chart` and `cargo xtask manifests`: the Helm chart is what it promises, and the
//! plain manifests are its rendering.
//!
//! What the chart must render for which values is a table in `cases`, what it must refuse one in
//! `refusals`; `schemas` cuts an API server's own description of its objects down to what kubeconform
//! needs. Nothing here talks to a cluster.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    build, golang,
    shell::{line, program, read, root, say},
    tally::Tally,
};

mod case;
mod cases;
mod refusals;
pub(crate) mod schemas;

use case::{Case, Expected};
use cases::CASES;
use refusals::REFUSALS;

/// Folder of the chart, from the root.
const CHART: &str = "deploy/helm/tokentrail";
/// Its rendering for people without Helm.
const MANIFESTS: &str = "deploy/manifests/tokentrail.yaml";
/// The version of Kubernetes that is rendered for: Helm itself, built from source, knows none.
const KUBERNETES: &str = "v1.34.4";
/// What it is rendered as unless that matters.
const RELEASE: &str = "tokentrail";
/// Where the manifests' objects live; a chart leaves that to its user.
const NAMESPACE: &str = "\
# Rendered from deploy/helm/tokentrail by `cargo xtask manifests`.
apiVersion: v1
kind: Namespace
metadata:
  name: tokentrail
  labels:
    # Loading BPF programs and looking at the node's processes is what this level is for.
    pod-security.kubernetes.io/enforce: privileged
";

/// Builds what the chart is for, and runs all checks of it.
///
/// # Errors
/// If one fails or cannot be run.
pub(crate) fn run() -> Result<()> {
    build::run()?;
    let tally = check()?;
    say(tally);
    ensure!(tally.failed == 0, "{} checks of the chart failed", tally.failed);
    Ok(())
}

/// Runs all checks of the chart, each as if none before had failed.
///
/// # Errors
/// If one cannot be run.
pub(crate) fn check() -> Result<Tally> {
    let chart = Chart { helm: golang::helm()? };
    let mut tally = Tally::default();
    let mut count = |what: &str, outcome: Result<()>| match outcome {
        Ok(()) => {
            say(format_args!("  ok      {what}"));
            tally += Tally { passed: 1, ..Tally::default() };
        }
        Err(error) => {
            say(format_args!("  FAILED  {what}: {error:#}"));
            tally += Tally { failed: 1, ..Tally::default() };
        }
    };
    count("helm lint --strict", chart.lint());
    let mut rendered = String::new();
    for case in CASES.iter().chain(REFUSALS) {
        count(case.says, chart.check(case, &mut rendered));
    }
    let kubeconform = golang::kubeconform()?;
    count("every object fits the API's schemas", conforms(&kubeconform, &rendered));
    count("a shell understands the script of `helm test`", is_shell(&rendered));
    count("the agent understands the configuration it is given", understood(&rendered));
    count(
        "the plain manifests are the chart's",
        chart.manifests().and_then(|now| up_to_date(&now)),
    );
    Ok(tally)
}

/// Writes the plain manifests.
///
/// # Errors
/// If the chart does not render, or the file cannot be written.
pub(crate) fn write_manifests() -> Result<()> {
    let chart = Chart { helm: golang::helm()? };
    let path = root().join(MANIFESTS);
    fs::write(&path, chart.manifests()?).with_context(|| format!("could not write {path:?}"))?;
    say(format_args!("wrote {MANIFESTS}"));
    Ok(())
}

struct Chart {
    helm: PathBuf,
}

impl Chart {
    fn lint(&self) -> Result<()> {
        let mut helm = program(&self.helm);
        read(helm.args(["lint", "--strict", "--kube-version", KUBERNETES, CHART])).map(drop)
    }

    fn check(&self, case: &Case, rendered: &mut String) -> Result<()> {
        let release = case.release.unwrap_or(RELEASE);
        let kubernetes = case.kubernetes.unwrap_or(KUBERNETES);
        let text = match (self.render(release, case.values, kubernetes), case.expected) {
            (Err(error), Expected::Refused(why)) => {
                let error = format!("{error:#}");
                ensure!(error.contains(why), "it was refused, but not for {why:?}: {error}");
                return Ok(());
            }
            (Ok(_), Expected::Refused(_)) => bail!("these values must be refused"),
            (text, Expected::Renders(_)) => text?,
        };
        let objects = parse(&text)?;
        if let Expected::Renders(facts) = case.expected {
            for (path, fact) in facts {
                fact.check(find(&objects, path).as_ref()).with_context(|| (*path).to_owned())?;
            }
        }
        rendered.push_str("\n---\n");
        rendered.push_str(&text);
        Ok(())
    }

    fn render(&self, release: &str, values: &str, kubernetes: &str) -> Result<String> {
        let mut helm = program(&self.helm);
        helm.args(["template", release, CHART, "--namespace", "tokentrail"]).args([
            "--kube-version",
            kubernetes,
            "--values",
            "-",
        ]);
        feed(&mut helm, values)
    }

    /// Without the marks by which Helm knows its own, and without what it says about its sources.
    fn manifests(&self) -> Result<String> {
        let text = self.render(RELEASE, "", KUBERNETES)?;
        let helms = ["# Source: ", "app.kubernetes.io/managed-by: ", "helm.sh/chart: "];
        let lines =
            text.lines().filter(|line| !helms.iter().any(|mark| line.trim().starts_with(mark)));
        let mut manifests = NAMESPACE.to_owned();
        for line in lines {
            manifests.push_str(line);
            manifests.push('\n');
        }
        Ok(manifests)
    }
}

fn up_to_date(manifests: &str) -> Result<()> {
    let path = root().join(MANIFESTS);
    let written = fs::read_to_string(&path).with_context(|| format!("could not read {path:?}"))?;
    ensure!(written == manifests, "{MANIFESTS} is old; run `cargo xtask manifests`");
    Ok(())
}

fn conforms(kubeconform: &Path, manifests: &str) -> Result<()> {
    let location = format!("{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", schemas::FOLDER);
    let mut command = program(kubeconform);
    command
        .args(["-strict", "-schema-location", &location])
        // Belongs to the Prometheus operator, which no test cluster has.
        .args(["-skip", "PodMonitor"]);
    feed(&mut command, manifests).map(drop)
}

/// Exit code 2 is what the agent has for a configuration that it does not understand; whether this
/// machine could run it is another question.
fn understood(manifests: &str) -> Result<()> {
    let agent = build::agent();
    ensure!(agent.exists(), "it is not built; run `cargo xtask build`");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config.yaml");
    let rules_file = folder.path().join("rules.yaml");
    for object in parse(manifests)? {
        let text = |name: &str| object.pointer(name).and_then(Value::as_str);
        let Some(rules) = text("/data/rules.yaml") else { continue };
        let configs = ["/data/config.yaml", "/data/audit-side.yaml"];
        for config in configs.into_iter().filter_map(text) {
            fs::write(&file, config)?;
            fs::write(&rules_file, rules)?;
            let mut check = program(&agent);
            check.args(["check", "--config"]).arg(&file).arg("--rules-file").arg(&rules_file);
            let output = check.output()?;
            if output.status.code() == Some(2) {
                let error = String::from_utf8_lossy(&output.stderr);
                bail!("{}\n{config}\n{rules}", error.trim());
            }
        }
    }
    Ok(())
}

/// What `helm test` runs is parsed by a shell, at least: it takes a cluster to run it.
fn is_shell(manifests: &str) -> Result<()> {
    let mut scripts = 0;
    for object in parse(manifests)? {
        let Some(script) = object.pointer("/data/run.sh").and_then(Value::as_str) else { continue };
        feed(program("sh").arg("-n"), script)?;
        scripts += 1;
    }
    ensure!(scripts > 0, "no script was rendered");
    Ok(())
}

/// All objects of a rendering.
fn parse(text: &str) -> Result<Vec<Value>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).context("this is not YAML")?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// What is at `Kind step step …`: a step is a key, or the `name` of a list's element. Text that is
/// stepped into is YAML.
fn find(objects: &[Value], path: &str) -> Option<Value> {
    let mut steps = path.split(' ');
    let kind = steps.next()?;
    let object = objects.iter().find(|object| object.get("kind").is_some_and(|it| it == kind))?;
    steps.try_fold(object.clone(), |value, step| match value {
        Value::Object(mut map) => map.remove(step),
        Value::Array(list) => {
            list.into_iter().find(|it| it.get("name").is_some_and(|name| name == step))
        }
        Value::String(text) => serde_saphyr::from_str::<Value>(&text).ok()?.get(step).cloned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    })
}

/// Runs a program with this input and returns its output; an error quotes what it said.
fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    let mut stdin = child.stdin.take().context("no input")?;
    let input = input.to_owned();
    // On a thread: a program that writes before it has read all would wait for us forever.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}{}", line(command), complaint.trim(), said.trim());
    }
    Ok(said)
}

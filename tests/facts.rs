//! What tests find out about a kernel, for `cargo xtask vm` to make its table of: a JSON object a line,
//! in the file that `TOKENTRAIL_FACTS` names. Part of the tests that find something out.

use std::{env, fs::File, io::Write as _};

use serde_json::Value;

/// Notes a fact, and prints it.
pub(crate) fn note(fact: &Value) {
    println!("{fact}");
    if let Some(path) = env::var_os("TOKENTRAIL_FACTS") {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{fact}").unwrap();
    }
}

//! What the canary requests of one run of an agent bear: a name in the user agent, by which audit sides know
//! who wants their events, and in each URI a number with its proof. Pure.
//!
//! Whoever reads the audit log or the answers to a node learns the name. The proof of a number is known to
//! nobody before the request with it was made and audited, so nobody makes a policy seem to hide nothing.

use std::{fs, process};

use sha2::{Digest as _, Sha256};

use super::{MARK, URI};

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    name: String,
    secret: String,
}

impl Run {
    /// One that nobody else has.
    pub fn begin() -> Self {
        Self { name: random(), secret: random() }
    }

    /// What the events of its requests are asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One for all of a run: to correlation its requests are a habit of the agent's own pod.
    pub(super) fn user_agent(&self) -> String {
        format!("{MARK}{}", self.name)
    }

    /// What the request of this number asks for.
    pub(super) fn uri(&self, number: u64) -> String {
        format!("{URI}{number}-{}", self.proof(number))
    }

    /// The number of the request that asked for this, if one of this run did.
    pub(super) fn number(&self, uri: &str) -> Option<u64> {
        let (number, proof) = uri.strip_prefix(URI)?.split_once('-')?;
        let number = number.parse().ok()?;
        (proof == self.proof(number)).then_some(number)
    }

    fn proof(&self, number: u64) -> String {
        let hash = Sha256::new().chain_update(&self.secret).chain_update(number.to_be_bytes());
        let beginning = hash.finalize().first_chunk().copied().map_or(0, u64::from_be_bytes);
        format!("{beginning:016x}")
    }
}

/// The name of the run whose canary bears this user agent.
pub fn of_user_agent(user_agent: &str) -> Option<&str> {
    user_agent.strip_prefix(MARK)
}

/// What nobody else has.
fn random() -> String {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid");
    random.map_or_else(|_| process::id().to_string(), |id| id.trim().to_owned())
}

#[cfg(test)]
impl Run {
    /// One whose name and secret a test knows.
    pub(crate) fn example() -> Self {
        Self { name: "run".to_owned(), secret: "secret".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_its_proof_is_of_no_run() {
        let run = Run::begin();
        assert_eq!(run.number(&run.uri(7)), Some(7));
        let proof = run.proof(7);
        let other = Run { name: run.name.clone(), secret: random() };
        for forged in [
            format!("{URI}7"),
            format!("{URI}7-"),
            format!("{URI}8-{proof}"),
            format!("{URI}-{proof}"),
            format!("{URI}7-{proof}0"),
            run.uri(7).replace("canary=7", "canary=07-"),
            other.uri(7),
            "/api/v1/pods".to_owned(),
        ] {
            assert_eq!(run.number(&forged), None, "{forged}");
        }
    }
}

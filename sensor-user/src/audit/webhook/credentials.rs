//! The webhook's own certificate, and what it knows its clients by; read again when the files change.
//!
//! What is configured is asked for: a client certificate of the given authority, a token, or both.
//! At least one is. Keeps digests of tokens, never tokens. Called by `webhook`.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};

/// More than any of these files needs, bytes.
const MAX_FILE: u64 = 1 << 20;
/// A shorter token can be guessed, bytes.
const MIN_TOKEN: usize = 16;

/// Where certificates and tokens are.
#[derive(Clone, Debug)]
pub struct CredentialFiles {
    /// The webhook's certificate with its intermediates, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Who signs for clients, PEM; `None` if clients need no certificate.
    pub client_ca: Option<PathBuf>,
    /// Tokens, a line each; `None` if clients need none.
    pub tokens: Option<PathBuf>,
}

impl CredentialFiles {
    /// Whether a webhook can be run with them.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self) -> Result<(), CredentialsError> {
        Files::open(self.clone()).map(drop)
    }
}

/// Why these files cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {path}, which the audit webhook needs: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds nothing of what it is for.
    #[error("{path} holds no {what}; the audit webhook needs one, in PEM")]
    Empty {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Certificate and key do not make a server.
    #[error("the audit webhook cannot use the certificate {cert} with the key {key}: {source}")]
    Server {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// Clients cannot be verified with this authority.
    #[error("the audit webhook cannot verify clients by {path}: {source}")]
    Authority {
        /// Its certificate.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The token file has no token that is safe to use.
    #[error(
        "{path} must hold at least one token for the audit webhook, a line each, none shorter than {min} bytes",
        min = MIN_TOKEN
    )]
    Tokens {
        /// The file.
        path: PathBuf,
    },
    /// Nothing would tell an API server from anybody else.
    #[error("the audit webhook knows its clients by nothing; give it a client CA or a token file")]
    Nobody,
}

/// What connections are made with.
#[derive(Debug)]
pub(super) struct Credentials {
    /// How to accept TLS.
    pub(super) tls: Arc<ServerConfig>,
    tokens: Option<Vec<[u8; 32]>>,
}

impl Credentials {
    /// Whether a client has still to show a token once it is connected.
    pub(super) fn ask_for_token(&self) -> bool {
        self.tokens.is_some()
    }

    /// Whether a request with this `Authorization` may go on.
    pub(super) fn admit(&self, authorization: Option<&HeaderValue>) -> bool {
        let Some(tokens) = &self.tokens else { return true };
        let shown = authorization.and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
        });
        // Digests are compared: how long that takes tells nothing about the token.
        shown.is_some_and(|shown| tokens.contains(&Sha256::digest(shown).into()))
    }
}

/// The files, and what was last seen in them.
#[derive(Debug)]
pub(super) struct Files {
    paths: CredentialFiles,
    seen: [u8; 32],
}

impl Files {
    /// Reads them for the first time.
    pub(super) fn open(paths: CredentialFiles) -> Result<(Self, Credentials), CredentialsError> {
        let mut files = Self { paths, seen: [0; 32] };
        let contents = files.read()?;
        files.seen = contents.digest();
        let credentials = files.build(&contents)?;
        Ok((files, credentials))
    }

    /// What is in them now, if that is new. A key that is newer than its certificate is an error,
    /// and gone at the next look.
    pub(super) fn changed(&mut self) -> Result<Option<Credentials>, CredentialsError> {
        let contents = self.read()?;
        let digest = contents.digest();
        if digest == self.seen {
            return Ok(None);
        }
        // Seen, whatever it is worth: what is wrong with it is told once.
        self.seen = digest;
        self.build(&contents).map(Some)
    }

    fn read(&self) -> Result<Contents, CredentialsError> {
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        Ok(Contents {
            cert: read(&self.paths.cert)?,
            key: read(&self.paths.key)?,
            client_ca: optional(&self.paths.client_ca)?,
            tokens: optional(&self.paths.tokens)?,
        })
    }

    fn build(&self, contents: &Contents) -> Result<Credentials, CredentialsError> {
        let CredentialFiles { cert, key, client_ca, tokens } = &self.paths;
        let provider = Arc::new(ring::default_provider());
        let server =
            |source| CredentialsError::Server { cert: cert.clone(), key: key.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(server)?;
        let builder = match client_ca.as_ref().zip(contents.client_ca.as_ref()) {
            Some((path, pem)) => builder.with_client_cert_verifier(verifier(path, pem, provider)?),
            None if tokens.is_none() => return Err(CredentialsError::Nobody),
            None => builder.with_no_client_auth(),
        };
        let own_key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| CredentialsError::Empty { path: key.clone(), what: "private key" })?;
        let mut tls = builder
            .with_single_cert(certificates(cert, &contents.cert)?, own_key)
            .map_err(server)?;
        // A resumed session would not show its certificate again, which may have expired.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tokens = tokens.as_ref().zip(contents.tokens.as_ref());
        let tokens = tokens.map(|(path, text)| digests(path, text)).transpose()?;
        Ok(Credentials { tls: Arc::new(tls), tokens })
    }
}

#[derive(Debug)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    tokens: Option<Vec<u8>>,
}

impl Contents {
    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for part in
            [Some(&self.cert), Some(&self.key), self.client_ca.as_ref(), self.tokens.as_ref()]
        {
            let part = part.map(Vec::as_slice).unwrap_or_default();
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn verifier(
    path: &Path,
    pem: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    let failed = |source| CredentialsError::Authority { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for root in certificates(path, pem)? {
        roots.add(root).map_err(failed)?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| failed(rustls::Error::General(error.to_string())))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| CredentialsError::Empty { path: path.to_owned(), what: "certificate" })
}

/// Several tokens, so that a new one can be given out before the old one goes.
fn digests(path: &Path, text: &[u8]) -> Result<Vec<[u8; 32]>, CredentialsError> {
    let tokens: Vec<&[u8]> = text
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
        .collect();
    if tokens.is_empty() || tokens.iter().any(|token| token.len() < MIN_TOKEN) {
        return Err(CredentialsError::Tokens { path: path.to_owned() });
    }
    Ok(tokens.iter().map(|token| Sha256::digest(token).into()).collect())
}

#[cfg(test)]
mod tests;

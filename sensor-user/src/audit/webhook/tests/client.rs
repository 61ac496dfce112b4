//! A client that speaks HTTP/1.1 byte by byte, so that it can also do it wrong.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::{
    DEADLINE,
    pki::{Authority, Identity},
};

pub(super) struct Client {
    stream: TlsStream<TcpStream>,
    /// A header line for each request.
    pub(super) header: String,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Status line and headers.
    pub(super) head: String,
}

impl Client {
    /// Shakes hands, to the point at which the server has judged the certificate.
    pub(super) async fn connect(
        stream: TcpStream,
        authority: &Authority,
        identity: Option<&Identity>,
    ) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        let name = "localhost".try_into().unwrap();
        let connect = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = timeout(DEADLINE, connect).await.expect("the handshake took too long")?;
        Ok(Self { stream, header: String::new() })
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The head of a POST, with a body of this length to come.
    pub(super) async fn send_head(&mut self, length: usize) {
        let head = format!(
            "POST /audit?timeout=30s HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{}\r\n",
            self.header
        );
        self.send(head.as_bytes()).await;
    }

    /// Sends a body whole, and reads the answer.
    pub(super) async fn post(&mut self, body: &[u8]) -> Reply {
        self.send_head(body.len()).await;
        self.send(body).await;
        self.reply().await.expect("no answer")
    }

    /// An answer without a body; an error if the connection ends before it.
    pub(super) async fn reply(&mut self) -> io::Result<Reply> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let read = timeout(DEADLINE, self.stream.read_u8()).await;
            head.push(read.expect("the answer took too long")?);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Reply { status, head })
    }

    /// Whether the server has ended the connection, or does so now.
    pub(super) async fn is_ended(&mut self) -> bool {
        let mut byte = [0];
        let read = timeout(DEADLINE, self.stream.read(&mut byte)).await;
        matches!(read.expect("the connection stays open"), Ok(0) | Err(_))
    }
}

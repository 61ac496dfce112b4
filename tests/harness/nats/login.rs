//! Somebody who has logged in to the broker and speaks its protocol by hand: whatever a client would never
//! do can be tried, and what the server says to it is told.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A connection of one user.
pub struct Login {
    stream: BufReader<TcpStream>,
    inbox: String,
    subscriptions: u64,
}

impl Login {
    /// Logs in over a connection on which the server has introduced itself.
    pub(super) fn new(stream: TcpStream, user: &str, password: &str, inbox: &str) -> Result<Self> {
        let mut login =
            Self { stream: BufReader::new(stream), inbox: inbox.to_owned(), subscriptions: 0 };
        let options = serde_json::json!({
            "verbose": false, "pedantic": false, "headers": true, "user": user, "pass": password,
        });
        let refusal = login.say(format!("CONNECT {options}\r\n").as_bytes())?;
        ensure!(refusal.is_none(), "{refusal:?}");
        let refusal = login.subscribe(inbox)?;
        ensure!(refusal.is_none(), "{refusal:?}");
        Ok(login)
    }

    /// Publishes, with the reply to go there; what the server refuses it with, if it does.
    ///
    /// # Errors
    /// If the connection ends.
    pub fn publish(
        &mut self,
        subject: &str,
        reply: &str,
        payload: &[u8],
    ) -> Result<Option<String>> {
        self.say(&message(subject, reply, "", payload))
    }

    /// Subscribes; what the server refuses it with, if it does.
    ///
    /// # Errors
    /// If the connection ends.
    pub fn subscribe(&mut self, subject: &str) -> Result<Option<String>> {
        self.subscriptions += 1;
        self.say(format!("SUB {subject} {}\r\n", self.subscriptions).as_bytes())
    }

    /// What is answered to a request. `headers` are lines, each with its CRLF.
    ///
    /// # Errors
    /// If it is refused, or nothing comes that is JSON.
    pub fn ask(&mut self, subject: &str, headers: &str, payload: &[u8]) -> Result<Value> {
        let request = message(subject, &self.inbox, headers, payload);
        self.stream.get_mut().write_all(&request)?;
        loop {
            match self.hear()? {
                Heard::Message(payload) => {
                    return serde_json::from_slice(&payload)
                        .with_context(|| String::from_utf8_lossy(&payload).into_owned());
                }
                Heard::Refusal(refusal) => bail!("{subject}: {refusal}"),
                Heard::Pong => {}
            }
        }
    }

    /// Sends any words of the protocol, and waits until the server has read all; its first refusal.
    ///
    /// # Errors
    /// If the connection ends.
    pub fn say(&mut self, words: &[u8]) -> Result<Option<String>> {
        self.stream.get_mut().write_all(&[words, b"PING\r\n"].concat())?;
        let mut refusal = None;
        loop {
            match self.hear()? {
                Heard::Refusal(words) => refusal = refusal.or(Some(words)),
                Heard::Message(_) => {}
                Heard::Pong => return Ok(refusal),
            }
        }
    }

    fn hear(&mut self) -> Result<Heard> {
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the server has ended the connection");
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["PONG"] => return Ok(Heard::Pong),
                ["PING"] => self.stream.get_mut().write_all(b"PONG\r\n")?,
                ["-ERR", ..] => return Ok(Heard::Refusal(line.trim().to_owned())),
                ["MSG", .., size] => return Ok(Heard::Message(self.body(0, size.parse()?)?)),
                ["HMSG", .., headers, size] => {
                    return Ok(Heard::Message(self.body(headers.parse()?, size.parse()?)?));
                }
                _ => {}
            }
        }
    }

    /// What follows a message's line, without its headers.
    fn body(&mut self, headers: usize, size: usize) -> Result<Vec<u8>> {
        let mut body = vec![0; size + 2];
        self.stream.read_exact(&mut body)?;
        body.truncate(size);
        Ok(body.split_off(headers))
    }
}

fn message(subject: &str, reply: &str, headers: &str, payload: &[u8]) -> Vec<u8> {
    let (verb, head, size) = if headers.is_empty() {
        ("PUB", String::new(), String::new())
    } else {
        let head = format!("NATS/1.0\r\n{headers}\r\n");
        let size = head.len().to_string();
        ("HPUB", head, size)
    };
    let all = head.len() + payload.len();
    let line = format!("{verb} {subject} {reply} {size} {all}\r\n");
    [line.as_bytes(), head.as_bytes(), payload, b"\r\n"].concat()
}

enum Heard {
    Pong,
    Refusal(String),
    Message(Vec<u8>),
}

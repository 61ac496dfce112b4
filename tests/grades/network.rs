//! Both ends of a connection into a container, whose network is this machine's: a shell that somebody
//! logs in to, and one that calls home.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use tokentrail_tests::{PATIENCE, wait_until};

/// A port of the loopback address that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Logs in at a port once somebody listens there.
pub(crate) fn log_in(port: u16) -> TcpStream {
    wait_until(PATIENCE, "somebody listens", || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
    })
    .unwrap()
}

/// Types a command, ends the shell, and returns what was shown.
pub(crate) fn type_command(mut shell: TcpStream, command: &str) -> String {
    shell.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    shell.write_all(format!("{command}; exit\n").as_bytes()).unwrap();
    let mut shown = Vec::new();
    // A shell that is gone may reset the connection; what it showed before is all.
    let _ = shell.read_to_end(&mut shown);
    String::from_utf8_lossy(&shown).into_owned()
}

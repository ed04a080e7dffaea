//! A server in a process of its own.

use std::io::{self, BufRead, BufReader, Lines, Read};
use std::process::{ChildStdout, Command, Stdio};
use std::{env, mem};

/// The argument with which a program starts itself as a server.
const SERVE: &str = "--serve";

/// This program, started again as a server, which ends with this process:
/// nothing of what it does is counted, and it shares no lock or allocator.
#[derive(Debug)]
pub struct ServerProcess {
    says: Lines<BufReader<ChildStdout>>,
}

impl ServerProcess {
    /// Starts the server for `what`.
    ///
    /// # Errors
    ///
    /// Where the process can't be started.
    pub fn start(what: &str) -> io::Result<Self> {
        let mut server = Command::new(env::current_exe()?)
            .args([SERVE, what])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = server.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        // Its input stays open for as long as this process lives.
        mem::forget(server);
        Ok(Self {
            says: BufReader::new(says).lines(),
        })
    }

    /// The next line that the server prints: where to reach it, say.
    ///
    /// # Errors
    ///
    /// Where it ends instead.
    pub fn line(&mut self) -> io::Result<String> {
        let line = self.says.next();
        line.unwrap_or(Err(io::ErrorKind::UnexpectedEof.into()))
    }

    /// What this process is to serve, where it is such a server.
    #[must_use]
    pub fn asked() -> Option<String> {
        env::args().skip_while(|argument| argument != SERVE).nth(1)
    }

    /// Waits for the end of the process that started this one.
    ///
    /// # Errors
    ///
    /// Where this process has no input to tell by.
    pub fn until_told() -> io::Result<()> {
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

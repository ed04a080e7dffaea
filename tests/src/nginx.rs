//! nginx, as a server that no one here wrote.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tollway::core::BoxError;

/// nginx, running until dropped.
#[derive(Debug)]
pub struct Nginx {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Nginx {
    /// Starts it with what `http` says for its `http` block, given the folder
    /// that is its own and the port on which it shall listen, and waits until it
    /// does.
    ///
    /// `None` where there is no nginx on this machine; said on stderr.
    ///
    /// # Errors
    ///
    /// Where nginx doesn't like its configuration, or the machine fails.
    ///
    /// # Panics
    ///
    /// Where there is no nginx under CI (`CI` in the environment).
    pub async fn start(
        http: impl FnOnce(&Path, u16) -> Result<String, BoxError>,
    ) -> Result<Option<Self>, BoxError> {
        // Free a moment ago; nginx can't be asked to choose.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let folder = std::env::temp_dir().join(format!("tollway-nginx-{port}"));
        std::fs::create_dir_all(&folder)?;
        let config = format!(
            "daemon off;
            master_process off;
            pid {folder}/pid;
            error_log {folder}/error.log;
            events {{}}
            http {{
                client_body_temp_path {folder}/body;
                proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi;
                scgi_temp_path {folder}/scgi;
                {http}
            }}",
            http = http(&folder, port)?,
            folder = folder.display(),
        );
        std::fs::write(folder.join("nginx.conf"), config)?;
        match command(&folder).spawn() {
            Ok(process) => {
                let mut nginx = Self {
                    process,
                    folder,
                    port,
                };
                nginx.listening().await?;
                Ok(Some(nginx))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let _ = std::fs::remove_dir_all(&folder);
                assert!(std::env::var_os("CI").is_none(), "CI has no nginx");
                eprintln!("skipped: there is no nginx on this machine");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it listens.
    async fn listening(&mut self) -> Result<(), BoxError> {
        loop {
            let address = (Ipv4Addr::LOCALHOST, self.port);
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join("error.log"));
                return Err(
                    format!("nginx ended with {status}: {}", log.unwrap_or_default()).into(),
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The port on which it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it, and reads what it wrote into `file`. It logs a call only after
    /// it has sent the answer, perhaps not before the caller has it; once it has
    /// ended, all is logged.
    ///
    /// # Errors
    ///
    /// Where it can't be told to quit, or wrote no such file.
    pub fn quit_and_read(mut self, file: &str) -> Result<String, BoxError> {
        let told = command(&self.folder).args(["-s", "quit"]).status()?;
        if !told.success() {
            return Err(format!("nginx can't be told to quit: {told}").into());
        }
        self.process.wait()?;
        Ok(std::fs::read_to_string(self.folder.join(file))?)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"))
        .stderr(Stdio::null());
    command
}

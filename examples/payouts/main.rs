//! Sends a file of payouts through Tollway, each exactly once.
//!
//! Without `--url` a simulated gateway of the provider runs in this process,
//! over TLS, with its real limits and some faults; afterwards its own ledger is
//! held against the file.

mod file;
mod pay;
mod provider;
mod report;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use http::{HeaderMap, HeaderName, HeaderValue};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use tokio::signal::ctrl_c;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tollway::Client;
use tollway::core::BoxError;
use tollway_sim::{Faults, Gateway, Provider};

use file::Payout;
use pay::{Payer, Settled, some_seed};
use provider::{Api, Target};
use report::{Line, Report};

/// Send a file of payouts through Tollway, each exactly once.
///
/// Without --url, a simulated gateway runs in this process, over TLS, and its
/// ledger proves the outcome.
#[derive(Debug, Parser)]
#[command(name = "payouts")]
struct Args {
    /// payrix, stripe, modern-treasury, savvy or payalo.
    #[arg(long, default_value_t = Provider::Payrix)]
    profile: Provider,
    /// Where to send to instead: https, or plain http on this machine.
    #[arg(long)]
    url: Option<String>,
    /// A header of every request, as `name: value`; for a real provider's
    /// credentials. May be repeated.
    #[arg(long, value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// The payouts: reference,amount,currency,beneficiary.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/payouts/payouts.csv"))]
    file: PathBuf,
    /// How many of them to send, from the top. [default: 2000, or with --file all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// How many at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// The share of requests that the simulated gateway fails, 0 to 1.
    #[arg(long, default_value_t = 0.02, conflicts_with = "url")]
    faults: f64,
    /// What the faults are drawn from. [default: the clock]
    #[arg(long, conflicts_with = "url")]
    seed: Option<u64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), BoxError> {
    let (name, value) = text.split_once(':').ok_or("expected `name: value`")?;
    let mut value = HeaderValue::from_str(value.trim())?;
    value.set_sensitive(true);
    Ok((name.trim().parse()?, value))
}

/// Nothing was sent: the file, the gateway or a setting is at fault.
const NOTHING_SENT: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(report) => {
            if args.json {
                match serde_json::to_string(&report) {
                    Ok(json) => println!("{json}"),
                    Err(error) => eprintln!("error: {error}"),
                }
            } else {
                println!("{report}");
            }
            ExitCode::from(u8::from(!report.is_clean()))
        }
        Err(error) => {
            eprint!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::from(NOTHING_SENT)
        }
    }
}

async fn run(args: &Args) -> Result<Report, BoxError> {
    let by_default = concat!(env!("CARGO_MANIFEST_DIR"), "/payouts/payouts.csv");
    let sample = args.file.as_os_str() == by_default;
    let count = args.count.or(sample.then_some(2000));
    let count = count.map(usize::try_from).transpose()?;
    let payouts = file::read(&args.file, count)?;
    let gateway = match args.url {
        Some(_) => None,
        None => Some(gateway(args).await?),
    };
    let payer = payer(args, gateway.as_ref())?;

    let started = Instant::now();
    let (lines, failed) = pay_all(&payer, &payouts, args).await;
    let elapsed = started.elapsed();

    let opened = payer.client.pool_stats().total().opened();
    let mut report = Report::new(&lines, elapsed, opened);
    report.without_outcome(payouts.len() - lines.len() - failed, failed);
    let mut accepted = report.answered();
    if let Some(gateway) = &gateway {
        report.prove(gateway, &lines);
        accepted = gateway.stats().accepted;
    }
    report.against(payer.api.rule(), accepted, elapsed);
    drop(lines);
    payer.client.drain(Duration::from_secs(1)).await;
    if let Some(gateway) = gateway {
        gateway.shutdown().await;
    }
    Ok(report)
}

async fn gateway(args: &Args) -> Result<Gateway, BoxError> {
    let seed = args.seed.unwrap_or_else(some_seed);
    let gateway = Gateway::builder(args.profile)
        .tls(true)
        .faults(Faults::rate(args.faults))
        .seed(seed)
        .start()
        .await?;
    if !args.json {
        eprintln!(
            "{} at {}, simulated, {} % of requests go wrong, seed {seed}",
            args.profile,
            gateway.url(),
            args.faults * 100.0
        );
    }
    Ok(gateway)
}

fn payer(args: &Args, gateway: Option<&Gateway>) -> Result<Payer, BoxError> {
    let api = Api(args.profile);
    let mut headers = HeaderMap::new();
    for (name, value) in &args.header {
        headers.append(name, value.clone());
    }
    let url = match (&args.url, gateway) {
        (Some(url), _) => url.clone(),
        (None, Some(gateway)) => gateway.url(),
        (None, None) => return Err("neither a URL nor a gateway".into()),
    };
    let target = Target::new(&url, headers)?;
    let mut builder = Client::builder(api.profile()).plain_http(target.is_plain());
    if let Some(certificate) = gateway.and_then(Gateway::ca_certificate_der) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.to_vec().into())?;
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        builder = builder.tls(tls);
    }
    Ok(Payer {
        client: builder.build()?,
        api,
        target,
    })
}

/// Pays all, so many at a time, and shows how far it is. Says too how many
/// workers failed, each with a payout in its hands.
async fn pay_all<'a>(payer: &Payer, payouts: &'a [Payout], args: &Args) -> (Vec<Line<'a>>, usize) {
    let least = payer.api.least_time(payouts.len());
    let progress = Arc::new(Progress::new(payouts.len(), least, args.json));
    let shared: Arc<[Payout]> = payouts.into();
    let next = Arc::new(AtomicUsize::new(0));
    let settled = Arc::new(Mutex::new(Vec::with_capacity(payouts.len())));
    let stopping = tokio::spawn(stop_on_ctrl_c(progress.clone(), next.clone()));
    let workers = (0..args.concurrency).map(|_| {
        let (payer, shared, next) = (payer.clone(), shared.clone(), next.clone());
        let (settled, progress) = (settled.clone(), progress.clone());
        tokio::spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(payout) = shared.get(at) else { break };
                let started = Instant::now();
                progress.begin();
                let outcome = payer.pay(payout).await;
                progress.end(&outcome);
                settled.lock().await.push((at, outcome, started.elapsed()));
            }
        })
    });
    let mut failed = 0;
    for worker in workers.collect::<Vec<_>>() {
        failed += usize::from(worker.await.is_err());
    }
    stopping.abort();
    progress.bar.finish_and_clear();
    let mut lines = Vec::with_capacity(payouts.len());
    for (at, settled, took) in settled.lock().await.drain(..) {
        lines.push(Line {
            payout: &payouts[at],
            settled,
            took,
        });
    }
    (lines, failed)
}

/// Begins no more payouts after Ctrl-C, but waits for what became of those that
/// are under way. After another Ctrl-C it doesn't.
async fn stop_on_ctrl_c(progress: Arc<Progress>, next: Arc<AtomicUsize>) {
    if ctrl_c().await.is_err() {
        return;
    }
    next.store(usize::MAX / 2, Ordering::Relaxed);
    progress.bar.suspend(|| {
        eprintln!("stopping once what is under way has an outcome; Ctrl-C again won't wait");
    });
    if ctrl_c().await.is_ok() {
        std::process::exit(130);
    }
}

/// A line on the terminal, on standard error: nothing where that is no terminal.
struct Progress {
    bar: ProgressBar,
    in_flight: AtomicU64,
    retries: AtomicU64,
}

impl Progress {
    /// `least` is the least time that the provider's rule allows for all.
    fn new(len: usize, least: Duration, hidden: bool) -> Self {
        let bar = if hidden {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(u64::try_from(len).unwrap_or(u64::MAX))
        };
        // Writing fails only where there is no line to show.
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            let _ = write!(text, "{:.0}/s", state.per_sec());
        };
        let left = move |state: &ProgressState, text: &mut dyn Write| {
            // A burst says nothing of the wait for the next window.
            let left = state.eta().max(least.saturating_sub(state.elapsed()));
            let _ = write!(text, "{}", HumanDuration(left));
        };
        let template = "{bar:30} {pos}/{len}  {rate}  {msg}  {left} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.with_key("rate", rate).with_key("left", left));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            in_flight: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }

    fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self, settled: &Settled) {
        let in_flight = self.in_flight.fetch_sub(1, Ordering::Relaxed) - 1;
        let retries = self.retries.fetch_add(settled.retries, Ordering::Relaxed) + settled.retries;
        self.bar
            .set_message(format!("{in_flight} in flight, {retries} retries"));
        self.bar.inc(1);
    }
}

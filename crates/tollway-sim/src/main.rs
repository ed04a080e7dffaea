//! One of the five simulated gateways, as a program.

use std::error::Error;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tollway_sim::rule::{Rule, RuleKind};
use tollway_sim::{Faults, Gateway, GatewayBuilder, Latency, Ledger, Provider, Scope, Stats};

/// Run a simulated payment gateway: its rate limits, its idempotency, and faults on request.
///
/// What took effect is shown at /_sim/ledger, what was counted at /_sim/stats. Ctrl-C stops the
/// gateway and prints a summary.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// payrix, stripe, modern-treasury, savvy or payalo
    provider: Provider,

    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,

    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,

    /// Speak TLS, with a certificate authority made for this run, and a certificate for localhost
    /// and the loopback addresses alone
    #[arg(long)]
    tls: bool,

    /// Write the authority's certificate (PEM) to this file, for clients to trust
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca: Option<PathBuf>,

    /// Enforce the sandbox limits, where the provider has others for live mode
    #[arg(long)]
    sandbox: bool,

    /// Share of requests that go wrong, from 0 to 1
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    faults: f64,

    /// Time taken over a request: 20ms, or 5ms..50ms for anything in between
    #[arg(long, value_name = "MIN..MAX", value_parser = latency)]
    latency: Option<Latency>,

    /// Close connections that were idle this long: 30s [default: 30s for modern-treasury, or else
    /// never]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    idle_timeout: Option<Duration>,

    /// What faults and latencies are drawn from: the same seed, the same faults
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    rule: RuleArgs,
}

/// With --rule alone the provider's own rates are counted that way. With --limit one rate on each
/// source, host and path takes the place of all of the provider's limits.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Rate rule")]
struct RuleArgs {
    /// sliding-log, fixed-window, sliding-counter, token-bucket or leaky-bucket. Alone, it sets
    /// how the provider's own rates are counted
    #[arg(long, value_name = "KIND")]
    rule: Option<RuleKind>,

    /// Requests per window on each source, host and path, in place of the provider's own limits
    #[arg(long, value_name = "N")]
    limit: Option<u32>,

    /// The window: 10s [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "limit")]
    window: Option<Duration>,

    /// What a bucket holds [default: the limit for a token bucket, 0 for a leaky bucket]
    #[arg(long, value_name = "N", requires = "limit")]
    burst: Option<u32>,

    /// How long everything is refused once the rule was broken: 10s
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "limit")]
    penalty: Option<Duration>,

    /// Count refused requests too
    #[arg(long, requires = "limit")]
    count_rejected: bool,
}

impl RuleArgs {
    fn apply(&self, builder: GatewayBuilder) -> GatewayBuilder {
        match (self.limit, self.rule) {
            (None, None) => builder,
            (None, Some(kind)) => builder.rule_kind(kind),
            (Some(limit), kind) => {
                let kind = kind.unwrap_or(RuleKind::SlidingLog);
                let window = self.window.unwrap_or(Duration::from_secs(1));
                let mut rule = Rule::new(kind, limit, window).rejected_count(self.count_rejected);
                if let Some(burst) = self.burst {
                    rule = rule.burst(burst);
                }
                if let Some(penalty) = self.penalty {
                    rule = rule.penalty(penalty);
                }
                builder.unlimited().rule(Scope::EachPath, rule)
            }
        }
    }
}

/// A number of seconds, or one with a unit: `10`, `1.5s`, `250ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, seconds_each) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let number: Option<f64> = number.trim().parse().ok();
    number
        .and_then(|number| Duration::try_from_secs_f64(number * seconds_each).ok())
        .ok_or_else(|| "expected seconds, or a time like 10s or 250ms".to_owned())
}

/// One time or two. A bare number could be meant either way, so here the unit must be said.
fn latency(text: &str) -> Result<Latency, String> {
    let time = |text: &str| match text.strip_suffix('s') {
        Some(_) => duration(text),
        None => Err("expected a time like 20ms or 1s, or two like 5ms..50ms".to_owned()),
    };
    Ok(match text.split_once("..") {
        None => Latency::Fixed(time(text)?),
        Some((min, max)) => Latency::uniform(time(min)?, time(max)?),
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let mut builder = Gateway::builder(args.provider)
        .bind(SocketAddr::new(args.address, args.port))
        .tls(args.tls)
        .sandbox(args.sandbox)
        .faults(Faults::rate(args.faults))
        .latency(args.latency.unwrap_or_default())
        .seed(args.seed);
    if let Some(timeout) = args.idle_timeout {
        builder = builder.idle_timeout(timeout);
    }
    let gateway = args.rule.apply(builder).start().await?;
    if let (Some(file), Some(pem)) = (&args.ca, gateway.ca_certificate_pem()) {
        fs::write(file, pem).map_err(|error| format!("can't write {}: {error}", file.display()))?;
    }

    let url = gateway.url();
    println!("{} listens on {url}", args.provider);
    println!("  payouts   POST {url}{}", args.provider.wire().create);
    println!("  effects   GET  {url}/_sim/ledger");
    println!("  counts    GET  {url}/_sim/stats");
    if let Some(file) = &args.ca {
        println!("  trust     {}", file.display());
    }

    tokio::signal::ctrl_c().await?;
    summarise(&gateway.stats(), &gateway.ledger());
    gateway.shutdown().await;
    Ok(())
}

fn summarise(stats: &Stats, ledger: &Ledger) {
    println!();
    println!("arrivals     {}", stats.arrivals);
    println!("accepted     {}", stats.accepted);
    println!(
        "throttled    {} (blocks: {})",
        stats.throttled, stats.blocks
    );
    println!("connections  {}", stats.connections_accepted);
    println!("effects      {}", ledger.effects());
    println!("duplicates   {}", ledger.duplicates().len());
    for (fault, times) in &stats.faults {
        println!("fault        {fault}: {times}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "s", "-1", "nan", "inf", "1h", "1e300"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_latency_is_one_time_or_two() {
        let ms = Duration::from_millis;
        assert_eq!(latency("20ms"), Ok(Latency::Fixed(ms(20))));
        assert_eq!(latency("5ms..50ms"), Ok(Latency::uniform(ms(5), ms(50))));
        for bad in ["5ms..", "5..50", "20"] {
            assert!(latency(bad).is_err(), "{bad}");
        }
    }
}

//! One payout, until it is certain what became of it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio::time::sleep;
use tollway::core::Verdict;
use tollway::retry::{Attempts, Outcome};
use tollway::{Client, ResponseBody};

use crate::file::Payout;
use crate::provider::{Api, Target, snippet};

/// How often a payout is sent as a call of its own, each with its own retries,
/// before it is given up.
const SENDS: u32 = 5;

/// How often the provider is asked what became of a payout.
const ASKED: u32 = 6;

/// How long a gateway is given to finish what it may have begun, before it is
/// asked whether it did, and between two times of asking.
const SETTLING: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1000 });

/// What became of a payout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeded,
    Rejected(String),
    /// It may have taken effect, and the provider doesn't say.
    Unknown(String),
    /// It certainly never took effect, however often it was sent.
    Unsent(String),
}

/// The fate of one payout, and what it took.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub(crate) fate: Fate,
    pub(crate) attempts: u64,
    pub(crate) retries: u64,
    pub(crate) throttled: u64,
    /// Whether the provider had to be asked what had become of it.
    pub(crate) reconciled: bool,
}

/// Sends payouts to one provider.
#[derive(Clone, Debug)]
pub(crate) struct Payer {
    pub(crate) client: Client,
    pub(crate) api: Api,
    pub(crate) target: Target,
}

/// What one call said.
enum Said {
    Final(Fate),
    NotExecuted(String),
    Unknown(String),
}

impl Payer {
    /// Pays `payout` exactly once, or says why that is not certain.
    pub(crate) async fn pay(&self, payout: &Payout) -> Settled {
        let mut settled = Settled {
            fate: Fate::Unsent(String::new()),
            attempts: 0,
            retries: 0,
            throttled: 0,
            reconciled: false,
        };
        for _ in 0..SENDS {
            let said = self.send(payout, &mut settled).await;
            settled.fate = match said {
                Said::Final(fate) => fate,
                Said::NotExecuted(why) => {
                    settled.fate = Fate::Unsent(why);
                    continue;
                }
                Said::Unknown(why) => {
                    settled.reconciled = true;
                    match self.took_effect(payout).await {
                        Some(true) => Fate::Succeeded,
                        // Certainly not: it may be sent again.
                        Some(false) => {
                            settled.fate = Fate::Unsent(why);
                            continue;
                        }
                        None => Fate::Unknown(why),
                    }
                }
            };
            break;
        }
        settled.retries = settled.attempts.saturating_sub(1);
        settled
    }

    async fn send(&self, payout: &Payout, settled: &mut Settled) -> Said {
        let request = match self.api.create(&self.target, payout) {
            Ok(request) => request,
            Err(error) => return Said::NotExecuted(error.to_string()),
        };
        match self.client.send(request).await {
            Ok(response) => {
                count(settled, Attempts::of(response.extensions()), 1);
                self.read(response).await
            }
            Err(error) => {
                count(settled, error.attempts(), 0);
                let why = format!("{error:#}");
                if error.is_not_executed() {
                    Said::NotExecuted(why)
                } else if error.verdict() == Verdict::Rejected {
                    Said::Final(Fate::Rejected(why))
                } else {
                    Said::Unknown(why)
                }
            }
        }
    }

    async fn read(&self, response: Response<ResponseBody>) -> Said {
        let verdict = Verdict::of_response(&response);
        let status = response.status();
        // A 2xx is proof enough, whether or not its body arrives.
        let body = read_body(response).await.unwrap_or_default();
        let why = format!("{status}: {}", snippet(&body));
        match verdict {
            Verdict::Done => Said::Final(Fate::Succeeded),
            Verdict::Rejected => Said::Final(Fate::Rejected(why)),
            Verdict::NotExecuted { .. } => Said::NotExecuted(why),
            Verdict::Unknown => Said::Unknown(why),
        }
    }

    /// Asks the provider by reference whether a payout took effect.
    ///
    /// Only a "no" said twice counts as one: a gateway may still be busy with
    /// what it lost the connection to. One that fails to answer is asked again:
    /// asking has no effect.
    async fn took_effect(&self, payout: &Payout) -> Option<bool> {
        let mut denied = false;
        for _ in 0..ASKED {
            sleep(SETTLING).await;
            let Some((status, body)) = self.look_up(payout).await else {
                continue;
            };
            match self.api.found(status.as_u16(), &body, payout) {
                Some(false) if !denied => denied = true,
                told => return told,
            }
        }
        None
    }

    /// The provider's answer for good, if it gives one that arrives.
    async fn look_up(&self, payout: &Payout) -> Option<(StatusCode, Bytes)> {
        let request = self.api.look_up(&self.target, &payout.reference).ok()?;
        let response = self.client.send(request).await.ok()?;
        if !Verdict::of_response(&response).is_final() {
            return None;
        }
        let status = response.status();
        Some((status, read_body(response).await?))
    }
}

/// The body, if it arrives and isn't absurdly long.
async fn read_body(response: Response<ResponseBody>) -> Option<Bytes> {
    let body = Limited::new(response.into_body(), 1024 * 1024);
    body.collect().await.ok().map(|body| body.to_bytes())
}

/// Adds up a call's attempts. A response without a story took one.
fn count(settled: &mut Settled, story: Option<&Attempts>, unless: u64) {
    settled.attempts += story.map_or(unless, |story| story.made().into());
    let refused =
        |outcome: &Outcome| matches!(outcome, Outcome::Status(status) if status.as_u16() == 429);
    let throttled = story.map_or(0, |story| {
        story
            .records()
            .iter()
            .filter(|record| refused(&record.outcome))
            .count()
    });
    settled.throttled += u64::try_from(throttled).unwrap_or(u64::MAX);
}

/// Seconds since 1970, the seed when none is given.
pub(crate) fn some_seed() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use tollway::retry::BackOff;
    use tollway_sim::{Fault, Faults, Gateway, Provider};

    use super::*;

    /// Pays as a program does that has just been started.
    async fn run(gateway: &Gateway, amount: u64) -> Settled {
        let api = Api(gateway.provider());
        let mut profile = api.profile();
        let [base, cap] = [1, 2].map(Duration::from_millis);
        let back_off = BackOff::exponential(base, cap).unwrap();
        profile.retry = profile.retry.back_off(back_off);
        let client = Client::builder(profile).plain_http(true);
        let payer = Payer {
            client: client.build().unwrap(),
            api,
            target: Target::new(&gateway.url(), http::HeaderMap::new()).unwrap(),
        };
        let payout = Payout {
            reference: "po-1".to_owned(),
            amount,
            currency: "EUR".to_owned(),
            beneficiary: "acct_1".to_owned(),
        };
        payer.pay(&payout).await
    }

    #[tokio::test]
    async fn a_program_that_is_started_anew_pays_nothing_twice() {
        for provider in Provider::ALL {
            // Payrix honours no key: who starts anew there asks before he sends.
            if provider == Provider::Payrix {
                continue;
            }
            let gateway = Gateway::builder(provider).start().await.unwrap();
            assert_eq!(run(&gateway, 100).await.fate, Fate::Succeeded, "{provider}");
            let again = run(&gateway, 100).await;
            assert_eq!(again.fate, Fate::Succeeded, "{provider}");
            // It refuses the second, and doesn't say what the first was for.
            assert_eq!(again.reconciled, provider == Provider::Payalo, "{provider}");
            assert_eq!(gateway.ledger().times_applied("po-1"), 1, "{provider}");
        }
    }

    /// Of the faults that there are, one is in the answer to a look-up now and
    /// then.
    #[tokio::test]
    async fn a_look_up_that_fails_is_asked_again() {
        let down = Some(Fault::ErrorBefore(503));
        for (look_up, sent) in [
            // The answer breaks off; or the gateway is down for a whole call.
            (vec![Some(Fault::HalfResponse)], Fault::ResetAfterEffect),
            (vec![Some(Fault::HalfResponse)], Fault::ResetAfterRead),
            (vec![down; 4], Fault::ResetAfterEffect),
            (vec![down; 4], Fault::ResetAfterRead),
        ] {
            let script = [Some(sent)].into_iter().chain(look_up);
            let gateway = Gateway::builder(Provider::Payrix).faults(Faults::script(script));
            let gateway = gateway.start().await.unwrap();
            let settled = run(&gateway, 100).await;
            assert_eq!(settled.fate, Fate::Succeeded, "{sent}: {settled:?}");
            assert!(settled.reconciled, "{sent}");
            assert_eq!(gateway.ledger().times_applied("po-1"), 1, "{sent}");
        }
    }

    #[tokio::test]
    async fn a_reference_that_stands_for_another_payout_is_no_success() {
        for provider in Provider::ALL {
            if provider == Provider::Payrix {
                continue;
            }
            let gateway = Gateway::builder(provider).start().await.unwrap();
            assert_eq!(run(&gateway, 100).await.fate, Fate::Succeeded, "{provider}");
            let other = run(&gateway, 200).await;
            assert_ne!(other.fate, Fate::Succeeded, "{provider}: {other:?}");
            let unknown = matches!(other.fate, Fate::Unknown(_));
            assert_eq!(
                unknown,
                provider == Provider::Payalo,
                "{provider}: {other:?}"
            );
        }
    }
}

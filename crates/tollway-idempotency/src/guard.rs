//! Keys that were used before, and what for.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::mem;
use std::time::Duration;

use tokio::time::Instant;

/// A hash of 128 bits, keyed at random per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(pub(crate) [u64; 2]);

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Half of it is enough for a table.
        state.write_u64(self.0[0]);
    }
}

/// The hash of what is a hash already.
#[derive(Clone, Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = self.0.rotate_left(8) ^ hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Generation = HashMap<Digest, Use, BuildHasherDefault<Itself>>;

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// `None` where nobody looked: it was made here, and told to its caller.
    payload: Option<Digest>,
    since: Instant,
    in_flight: u32,
    /// Whether one of its calls may have got as far as the provider's memory.
    left: bool,
    /// What those that have ended did.
    effect: Effect,
}

/// The effect of a key's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    None,
    Possible,
    Certain,
}

impl Use {
    fn new(payload: Option<Digest>, since: Instant) -> Self {
        Self {
            payload,
            since,
            in_flight: 0,
            left: false,
            effect: Effect::None,
        }
    }

    fn stands_for(&self, payload: Digest) -> bool {
        self.payload.is_none_or(|known| known == payload)
    }
}

/// How a call ended, as far as its key is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It certainly had no effect.
    NotExecuted,
    /// It was rejected, maybe before anybody looked at its key.
    TurnedAway,
    /// It may have been executed.
    Unknown,
    /// It was executed.
    Done,
    /// It was rejected for what was asked, and so are all with its key, unless one
    /// was executed before.
    Refused,
}

/// Why a key can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It stands for another payload.
    Reused,
    /// The provider may have forgotten it.
    Expired,
}

/// The keys that were used before. Only a state machine: it is told the time.
///
/// It remembers the last `bound` keys at least and twice as many at most, in
/// two generations: a key goes into the young one whenever it is used; when
/// that is full it becomes the old one, and the old one is forgotten.
///
/// A key that comes to stand for another payload after its life leaves what it
/// stood for under a name of its own, and that counts as a key too.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    bound: usize,
    young: Generation,
    old: Generation,
}

impl Guard {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            bound,
            young: Generation::default(),
            old: Generation::default(),
        }
    }

    /// Lets a call with this key and payload go, and says since when the key
    /// has been in use. `life` is how long the provider remembers it.
    pub(crate) fn admit(
        &mut self,
        key: Digest,
        payload: Digest,
        life: Duration,
        now: Instant,
    ) -> Result<Instant, Refusal> {
        let known = self.find(key);
        let alive = |known: &Use| now.saturating_duration_since(known.since) < life;
        let mut this = match known {
            Some(known) if known.stands_for(payload) && alive(&known) => known,
            Some(known) if known.stands_for(payload) => return Err(Refusal::Expired),
            // In an earlier life.
            _ if self.find(spent(key, payload)).is_some() => return Err(Refusal::Expired),
            Some(known) if alive(&known) => return Err(Refusal::Reused),
            // To the provider it is a new key by now.
            known => {
                if let Some(dead) = known
                    && let Some(other) = dead.payload
                {
                    self.keep(spent(key, other), dead);
                }
                Use::new(None, now)
            }
        };
        this.payload = Some(payload);
        this.in_flight = this.in_flight.saturating_add(1);
        self.keep(key, this);
        Ok(this.since)
    }

    fn find(&self, name: Digest) -> Option<Use> {
        let known = self.young.get(&name).or_else(|| self.old.get(&name));
        known.copied()
    }

    fn keep(&mut self, name: Digest, this: Use) {
        self.old.remove(&name);
        if self.young.len() >= self.bound && !self.young.contains_key(&name) {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(name, this);
    }

    /// A call has ended that may have been executed, and its caller was told its
    /// key, which was made here: it may come back.
    pub(crate) fn tell(&mut self, key: Digest, since: Instant) {
        let mut this = self.find(key).unwrap_or(Use::new(None, since));
        this.left = true;
        this.effect = this.effect.max(Effect::Possible);
        self.keep(key, this);
    }

    /// Whether a call under way with this key isn't the only one that may have
    /// had an effect, or have one yet.
    pub(crate) fn is_in_doubt(&self, key: Digest, since: Instant) -> bool {
        self.find(key).is_some_and(|known| {
            known.effect != Effect::None || known.in_flight > 1 || known.since != since
        })
    }

    /// A call that was let go has ended. One that was certainly not executed
    /// frees its key, unless another call used it. Returns whether this end would
    /// deny what another call may have done, or may be doing.
    pub(crate) fn settle(&mut self, key: Digest, since: Instant, end: End) -> bool {
        let generation = if self.young.contains_key(&key) {
            &mut self.young
        } else {
            &mut self.old
        };
        let Some(this) = generation.get_mut(&key) else {
            // Forgotten at the bound.
            return false;
        };
        if this.since != since {
            // Replaced after its life, and what it stood for with it.
            return matches!(end, End::NotExecuted | End::TurnedAway);
        }
        this.in_flight = this.in_flight.saturating_sub(1);
        this.left |= end != End::NotExecuted;
        let denies = match end {
            End::NotExecuted | End::TurnedAway => this.effect != Effect::None || this.in_flight > 0,
            End::Unknown => {
                this.effect = this.effect.max(Effect::Possible);
                false
            }
            End::Done => {
                this.effect = Effect::Certain;
                false
            }
            End::Refused if this.effect == Effect::Certain => true,
            End::Refused => {
                this.effect = Effect::None;
                false
            }
        };
        if !this.left && this.in_flight == 0 {
            generation.remove(&key);
        }
        denies
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// The name of what a key stood for in an earlier life. Both are random bits, so
/// that any mixture of them is.
fn spent(key: Digest, payload: Digest) -> Digest {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    Digest([0, 1].map(|half| key.0[half].wrapping_mul(ODD).wrapping_add(!payload.0[half])))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    const LIFE: Duration = Duration::from_secs(100);

    fn digest(n: u64) -> Digest {
        Digest([n, n])
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_than_twice_the_bound_and_never_fewer_than_it_are_remembered() {
        let now = Instant::now();
        let mut guard = Guard::new(10);
        for key in 0..1000 {
            let since = guard.admit(digest(key), digest(0), LIFE, now).expect("new");
            guard.settle(digest(key), since, End::Unknown);
            assert!(guard.len() <= 20);
            for known in (key + 1).saturating_sub(10)..=key {
                let other = guard.clone().admit(digest(known), digest(1), LIFE, now);
                assert_eq!(other, Err(Refusal::Reused), "key {known} after {key}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_in_use_is_not_the_one_that_is_forgotten() {
        let now = Instant::now();
        let mut guard = Guard::new(10);
        for key in 1..1000 {
            guard
                .admit(digest(0), digest(0), LIFE, now)
                .expect("the same payload");
            guard.admit(digest(key), digest(0), LIFE, now).expect("new");
        }
        let other = guard.admit(digest(0), digest(1), LIFE, now);
        assert_eq!(other, Err(Refusal::Reused));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_in_one_generation_only() {
        let now = Instant::now();
        let mut guard = Guard::new(2);
        let since = guard.admit(digest(0), digest(0), LIFE, now).expect("new");
        for key in 1..3 {
            guard.admit(digest(key), digest(0), LIFE, now).expect("new");
        }
        // It is old by now, and used again.
        guard
            .admit(digest(0), digest(0), LIFE, now)
            .expect("the same payload");
        guard.settle(digest(0), since, End::NotExecuted);
        guard.settle(digest(0), since, End::NotExecuted);
        guard.admit(digest(0), digest(1), LIFE, now).expect("free");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_call_that_ends_late_does_not_free_the_key_of_a_new_one() {
        let start = Instant::now();
        let mut guard = Guard::new(10);
        let old = guard.admit(digest(1), digest(1), LIFE, start).expect("new");
        let later = start + LIFE;
        guard
            .admit(digest(1), digest(2), LIFE, later)
            .expect("new to the provider");
        // Nor does it deny what others of its time may have done.
        assert!(guard.is_in_doubt(digest(1), old));
        assert!(guard.settle(digest(1), old, End::NotExecuted));
        let other = guard.admit(digest(1), digest(3), LIFE, later);
        assert_eq!(other, Err(Refusal::Reused));
    }

    /// What happens to a naive memory without a bound.
    #[derive(Debug, Clone)]
    enum Event {
        Admit { key: u64, payload: u64 },
        Settle { nth: usize, end: End },
        Pass(u64),
    }

    const ENDS: &[End] = &[
        End::NotExecuted,
        End::NotExecuted,
        End::TurnedAway,
        End::Unknown,
        End::Unknown,
        End::Done,
        End::Refused,
    ];

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u64..4, 0u64..3).prop_map(|(key, payload)| Event::Admit { key, payload }),
            3 => (0usize..8, prop::sample::select(ENDS)).prop_map(|(nth, end)| Event::Settle { nth, end }),
            2 => (0u64..60).prop_map(Event::Pass),
        ]
    }

    #[derive(Clone)]
    struct Naive {
        payload: u64,
        since: Instant,
        open: usize,
        left: bool,
        /// Those that have ended, and told what they did.
        ends: Vec<End>,
    }

    impl Naive {
        fn is_done(&self) -> bool {
            self.ends.contains(&End::Done)
        }

        /// A refusal speaks for all that went before, unless one was done.
        fn may_be_done(&self) -> bool {
            let unknown = self.ends.iter().rposition(|end| *end == End::Unknown);
            let refused = self.ends.iter().rposition(|end| *end == End::Refused);
            self.is_done() || unknown > refused
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_key_stood_for_is_known_whatever_it_came_to_stand_for() {
        let start = Instant::now();
        let mut guard = Guard::new(10);
        let first = guard.admit(digest(1), digest(1), LIFE, start);
        guard.settle(digest(1), first.expect("new"), End::Unknown);
        for life in 1..=3 {
            let now = start + LIFE * life;
            let again = guard.clone().admit(digest(1), digest(1), LIFE, now);
            assert_eq!(again, Err(Refusal::Expired));
            // Another one, which frees the key or doesn't.
            let other = digest(1 + u64::from(life));
            let since = guard.admit(digest(1), other, LIFE, now).expect("new");
            let end = if life == 2 {
                End::Unknown
            } else {
                End::NotExecuted
            };
            guard.settle(digest(1), since, end);
            let again = guard.clone().admit(digest(1), digest(1), LIFE, now);
            assert_eq!(again, Err(Refusal::Expired), "{life}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_made_here_stands_for_whatever_it_comes_back_with() {
        let start = Instant::now();
        let mut guard = Guard::new(10);
        guard.tell(digest(1), start);
        let dead = guard
            .clone()
            .admit(digest(1), digest(1), LIFE, start + LIFE);
        assert_eq!(dead, Err(Refusal::Expired));
        assert_eq!(guard.admit(digest(1), digest(1), LIFE, start), Ok(start));
        assert!(guard.settle(digest(1), start, End::NotExecuted));
        let other = guard.admit(digest(1), digest(2), LIFE, start);
        assert_eq!(other, Err(Refusal::Reused));
    }

    proptest! {
        #[test]
        fn it_decides_as_a_memory_without_a_bound_does(events in prop::collection::vec(event(), 1..200)) {
            let mut now = Instant::now();
            let mut guard = Guard::new(1000);
            let mut naive: HashMap<u64, Naive> = HashMap::new();
            let mut spent = HashSet::new();
            let mut open: Vec<(u64, Instant)> = Vec::new();
            for event in events {
                match event {
                    Event::Pass(secs) => now += Duration::from_secs(secs),
                    Event::Admit { key, payload } => {
                        let fresh = Naive { payload, since: now, open: 0, left: false, ends: Vec::new() };
                        let known = naive.get(&key);
                        let alive = known.filter(|entry| now - entry.since < LIFE);
                        let expected = match (alive, known) {
                            (Some(alive), _) if alive.payload == payload => Ok(alive.since),
                            (None, Some(dead)) if dead.payload == payload => Err(Refusal::Expired),
                            _ if spent.contains(&(key, payload)) => Err(Refusal::Expired),
                            (Some(_), _) => Err(Refusal::Reused),
                            _ => {
                                spent.extend(known.map(|dead| (key, dead.payload)));
                                naive.insert(key, fresh);
                                Ok(now)
                            }
                        };
                        let got = guard.admit(digest(key), digest(payload), LIFE, now);
                        prop_assert_eq!(got, expected);
                        if let Ok(since) = got {
                            naive.get_mut(&key).expect("let go").open += 1;
                            open.push((key, since));
                        }
                    }
                    Event::Settle { nth, end } => {
                        if open.is_empty() {
                            continue;
                        }
                        let (key, since) = open.swap_remove(nth % open.len());
                        let doubtful = guard.is_in_doubt(digest(key), since);
                        let denies = guard.settle(digest(key), since, end);
                        let entry = naive.get_mut(&key);
                        if let Some(entry) = entry.filter(|entry| entry.since == since) {
                            entry.open -= 1;
                            entry.left |= end != End::NotExecuted;
                            let others = entry.may_be_done() || entry.open > 0;
                            prop_assert_eq!(doubtful, others);
                            let expected = match end {
                                End::NotExecuted | End::TurnedAway => others,
                                End::Refused => entry.is_done(),
                                End::Unknown | End::Done => false,
                            };
                            prop_assert_eq!(denies, expected);
                            entry.ends.push(end);
                            if entry.open == 0 && !entry.left {
                                naive.remove(&key);
                            }
                        }
                    }
                }
            }
        }
    }
}

//! What time brings: idle, old and stuck connections, and the pool's end.

use tokio::time::Instant;

use super::{Kind, Stage, State};
use crate::stats::CloseReason;

impl<K: Kind> State<K> {
    /// Something is due then.
    pub(super) fn due(&mut self, at: Instant) {
        if self.alarm.is_none_or(|alarm| at < alarm) {
            self.alarm = Some(at);
            self.news = true;
        }
    }

    /// Whether something is due earlier than was known when this was last
    /// asked.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// The reaper is gone, and with it what it knew.
    pub(crate) fn forget_alarm(&mut self) {
        self.alarm = None;
    }

    /// When the reaper is to come.
    #[cfg(test)]
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// Closes what has been idle for too long or is too old, and by force what
    /// should have closed long ago. Returns when to come again.
    pub(crate) fn reap(&mut self, now: Instant) -> Option<Instant> {
        self.forget_refusals(now);
        let idle_timeout = self.limits.idle_timeout;
        // Whatever is in use now can't have been idle for too long before
        // then. So a busy connection that comes back never has to ring the
        // bell: the reaper is about already.
        let mut next = (!self.table.is_empty()).then(|| now + idle_timeout);
        let mut at_last = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let mut done = Vec::new();
        let mut lagging = Vec::new();
        for (id, entry) in self.table.iter() {
            match entry.lagging.iter().min() {
                Some(overdue) if now < *overdue => at_last(*overdue),
                Some(_) => lagging.push(id),
                None => {}
            }
            let idle_until = match &entry.stage {
                Stage::Idle { until, .. }
                | Stage::Shared {
                    streams: 0, until, ..
                } => *until,
                // Its streams go on, but it takes no new ones once too old.
                Stage::Shared { .. } => match entry.expires {
                    Some(expires) => expires,
                    None => continue,
                },
                Stage::Closing {
                    overdue: Some(overdue),
                    ..
                } => {
                    if now < *overdue {
                        at_last(*overdue);
                    } else if let Some(abort) = &entry.abort {
                        self.effects.abort.push(abort.clone());
                    }
                    continue;
                }
                Stage::Settling { overdue, .. } => {
                    if now < *overdue {
                        at_last(*overdue);
                    } else {
                        done.push((id, CloseReason::Unread));
                    }
                    continue;
                }
                Stage::InUse => {
                    if let Some(expires) = entry.expires.filter(|at| now < *at) {
                        at_last(expires);
                    }
                    continue;
                }
                Stage::Opening(_) | Stage::Closing { .. } => continue,
            };
            let until = entry.expires.map_or(idle_until, |at| at.min(idle_until));
            if now < until {
                at_last(until);
            } else if now < idle_until || matches!(entry.stage, Stage::Shared { streams: 1.., .. })
            {
                done.push((id, CloseReason::Age));
            } else {
                done.push((id, CloseReason::Idle));
            }
        }
        self.alarm = next;
        for id in lagging {
            self.give_up_lagging(id, now);
        }
        for (id, reason) in done {
            self.close(id, reason, now);
        }
        self.serve(now);
        // Whoever asks for it is told here.
        self.news = false;
        self.alarm
    }

    /// No further call gets in. Those that wait are still served, and what is
    /// free closes.
    pub(crate) fn drain(&mut self, now: Instant) {
        self.draining = true;
        self.trim(now);
    }

    /// Everything ends now, by force. Those who wait are told `failure`.
    pub(crate) fn abort(&mut self, failure: &K::Failure, now: Instant) {
        self.draining = true;
        self.fail_waiters(self.queue.len(), failure);
        let ids: Vec<_> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.close(id, CloseReason::Drained, now);
            if let Some(abort) = self.table.get(id).and_then(|entry| entry.abort.clone()) {
                self.effects.abort.push(abort);
            }
        }
    }
}

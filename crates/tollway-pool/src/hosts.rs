//! The hosts of a pool, found by how a request's URL spells them.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Uri;

use crate::host::Host;
use crate::key::{BadUrl, Key, spelled};

/// How many spellings of one host are remembered. Beyond that, each look-up of
/// a further one goes through all hosts.
const SPELLINGS: usize = 4;

/// Hosts by their spelling: the authority as it stands in the URL. So a look-up
/// neither parses nor allocates; `API.example.com:443` finds its way to
/// `api.example.com` by the slow path, once.
pub(crate) struct Hosts<B: 'static> {
    plain: BTreeMap<Box<str>, Arc<Host<B>>>,
    tls: BTreeMap<Box<str>, Arc<Host<B>>>,
    /// Each host once, and how many spellings of it there are.
    all: Vec<(Arc<Host<B>>, usize)>,
}

impl<B: 'static> Hosts<B> {
    pub(crate) fn new() -> Self {
        Self {
            plain: BTreeMap::new(),
            tls: BTreeMap::new(),
            all: Vec::new(),
        }
    }

    /// The host of `uri`, if it was spelled so before.
    pub(crate) fn get(&self, uri: &Uri) -> Result<Option<&Arc<Host<B>>>, BadUrl> {
        let (https, authority) = spelled(uri)?;
        let known = if https { &self.tls } else { &self.plain };
        Ok(known.get(authority.as_str()))
    }

    /// The host of `key`, which `uri` spells, or else what `make` makes.
    pub(crate) fn get_or_insert(
        &mut self,
        uri: &Uri,
        key: &Key,
        make: impl FnOnce() -> Result<Host<B>, BadUrl>,
    ) -> Result<Arc<Host<B>>, BadUrl> {
        let (https, authority) = spelled(uri)?;
        let at = match self.all.iter().position(|(host, _)| host.key == *key) {
            Some(at) => at,
            None => {
                self.all.push((Arc::new(make()?), 0));
                self.all.len() - 1
            }
        };
        let (host, spellings) = &mut self.all[at];
        let known = if https {
            &mut self.tls
        } else {
            &mut self.plain
        };
        if *spellings < SPELLINGS {
            let before = known.insert(authority.as_str().into(), host.clone());
            *spellings += usize::from(before.is_none());
        }
        Ok(host.clone())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Host<B>>> {
        self.all.iter().map(|(host, _)| host)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Removes the hosts that nobody else holds and that `is_unused`. Nobody
    /// can get hold of one meanwhile: that takes a reference to `self`.
    pub(crate) fn forget(&mut self, mut is_unused: impl FnMut(&Arc<Host<B>>) -> bool) {
        let (plain, tls) = (&mut self.plain, &mut self.tls);
        self.all.retain(|(host, spellings)| {
            let unused = Arc::strong_count(host) == 1 + spellings && is_unused(host);
            if unused {
                plain.retain(|_, same| !Arc::ptr_eq(same, host));
                tls.retain(|_, same| !Arc::ptr_eq(same, host));
            }
            !unused
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_remembered_by_a_few_spellings_and_found_by_any() {
        let mut hosts = Hosts::<()>::new();
        for case in 0..64_u32 {
            let name: String = ('a'..='f')
                .enumerate()
                .map(|(at, c)| match case >> at & 1 {
                    1 => c.to_ascii_uppercase(),
                    _ => c,
                })
                .collect();
            let uri = format!("https://{name}.example/").parse().unwrap();
            let key = Key::of(&uri).unwrap();
            let make = || Host::unconnected(key.clone());
            hosts.get_or_insert(&uri, &key, make).unwrap();
        }
        assert_eq!((hosts.len(), hosts.tls.len()), (1, SPELLINGS));
        hosts.forget(|_| true);
        assert_eq!((hosts.len(), hosts.tls.len()), (0, 0));
    }
}

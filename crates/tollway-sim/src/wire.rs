//! The shape of each provider's requests, for whoever writes a client.
//!
//! A payout is a reference of the caller's, an amount in minor units, a currency and a
//! beneficiary. [`Wire`] says where each provider keeps them, where a payout is posted, and how
//! a caller asks by reference whether one took effect.
//!
//! ```
//! use tollway_sim::Provider;
//!
//! let wire = Provider::Stripe.wire();
//! assert_eq!(wire.create, "/v1/payouts");
//! assert_eq!(wire.reference, ["metadata", "reference"]);
//! assert_eq!(wire.lookup("a/b"), "/v1/payouts?metadata%5Breference%5D=a%2Fb");
//! ```

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::provider::Provider;

/// Where a provider keeps what a payout is made of. A field is named by its path through the
/// JSON object; in a form `["metadata", "reference"]` is `metadata[reference]`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Wire {
    /// The path to POST a payout to.
    pub create: &'static str,
    /// The caller's own reference.
    pub reference: &'static [&'static str],
    /// The amount in minor units, a JSON number.
    pub amount: &'static str,
    /// The currency.
    pub currency: &'static str,
    /// Who gets the money.
    pub beneficiary: &'static str,
    /// What the provider recognises a repeat by.
    pub key: Key,
    /// Where the answer to a look-up keeps what it found.
    pub matches: Matches,
    /// Query parameters that ask for a reference; the first is the one to use.
    pub(crate) lookup_keys: &'static [&'static str],
    /// What stands around the reference in a look-up.
    lookup: (&'static str, &'static str),
}

/// What a provider recognises a repeat by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Key {
    /// Nothing: a repeat takes effect again.
    None,
    /// This request header.
    Header(&'static str),
    /// This field of the body.
    Field(&'static str),
}

/// Where the answer to a look-up by reference keeps what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Matches {
    /// 200 and a list under this JSON pointer, empty when there is none.
    List(&'static str),
    /// 200 and the one, or 404.
    Status,
}

impl Wire {
    /// The path and query that ask for a reference. Always a GET.
    #[must_use]
    pub fn lookup(&self, reference: &str) -> String {
        const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
            .remove(b'-')
            .remove(b'_')
            .remove(b'.')
            .remove(b'~');
        let reference = utf8_percent_encode(reference, UNRESERVED);
        format!("{}{reference}{}", self.lookup.0, self.lookup.1)
    }
}

impl Provider {
    /// The shape of this provider's requests.
    #[must_use]
    pub const fn wire(self) -> &'static Wire {
        match self {
            Self::Payrix => &PAYRIX,
            Self::Stripe => &STRIPE,
            Self::ModernTreasury => &MODERN_TREASURY,
            Self::Savvy => &SAVVY,
            Self::Payalo => &PAYALO,
        }
    }
}

pub(crate) static PAYRIX: Wire = Wire {
    create: "/txns",
    reference: &["order"],
    amount: "total",
    currency: "currency",
    beneficiary: "merchant",
    key: Key::None,
    matches: Matches::List("/response/data"),
    lookup_keys: &["order[equals]", "order"],
    lookup: ("/txns?order%5Bequals%5D=", ""),
};

pub(crate) static STRIPE: Wire = Wire {
    create: "/v1/payouts",
    reference: &["metadata", "reference"],
    amount: "amount",
    currency: "currency",
    beneficiary: "destination",
    key: Key::Header("idempotency-key"),
    matches: Matches::List("/data"),
    lookup_keys: &["metadata[reference]"],
    lookup: ("/v1/payouts?metadata%5Breference%5D=", ""),
};

pub(crate) static MODERN_TREASURY: Wire = Wire {
    create: "/api/payment_orders",
    reference: &["metadata", "reference"],
    amount: "amount",
    currency: "currency",
    beneficiary: "receiving_account_id",
    key: Key::Header("idempotency-key"),
    matches: Matches::List(""),
    lookup_keys: &["metadata[reference]"],
    lookup: ("/api/payment_orders?metadata%5Breference%5D=", ""),
};

pub(crate) static SAVVY: Wire = Wire {
    create: "/payments",
    reference: &["Reference"],
    amount: "Amount",
    currency: "Currency",
    beneficiary: "Beneficiary",
    key: Key::Field("RequestId"),
    matches: Matches::Status,
    lookup_keys: &["Reference"],
    lookup: ("/payments?Reference=", ""),
};

pub(crate) static PAYALO: Wire = Wire {
    create: "/payments",
    reference: &["merchantReference"],
    amount: "amount",
    currency: "currency",
    beneficiary: "beneficiary",
    key: Key::Field("merchantReference"),
    matches: Matches::Status,
    lookup_keys: &["merchantReference"],
    lookup: ("/payments/", "/status"),
};

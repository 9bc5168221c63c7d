//! Facts the console states.

/// How an attempt to sign in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignIn {
    Accepted,
    /// No such policy, or not its key; which of them is not told.
    Refused,
    /// Too many attempts were wrong at the same time: not even looked at.
    Slowed,
}

impl SignIn {
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Refused, Self::Slowed];

    /// A label for metrics, from this closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Slowed => "slowed",
        }
    }
}

/// Why a request did nothing, before the hub was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Asked for under a name that is not the hub's: maybe somebody else's, led here by DNS.
    Host,
    /// Sent by a page of another origin, or without the header that only the console's own scripts add.
    Origin,
    /// Nobody is signed in.
    Session,
    /// The policy lacks the right.
    Permission,
    /// No such path, or not with this method.
    Path,
    /// Too large, too slow, or not what it should be.
    Body,
    /// As many wait for new messages as may.
    Busy,
    /// The hub said no: no such device, another etag, a throttle.
    Hub,
}

impl Reason {
    pub const ALL: [Self; 8] = [
        Self::Host,
        Self::Origin,
        Self::Session,
        Self::Permission,
        Self::Path,
        Self::Body,
        Self::Busy,
        Self::Hub,
    ];

    /// A label for metrics, from this closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Origin => "origin",
            Self::Session => "session",
            Self::Permission => "permission",
            Self::Path => "path",
            Self::Body => "body",
            Self::Busy => "busy",
            Self::Hub => "hub",
        }
    }
}

/// Implemented by `metrics`.
pub trait Observer: Send + Sync {
    fn signed_in(&self, _outcome: SignIn) {}
    /// A credential was refused; the label is from a closed set.
    fn auth_refused(&self, _label: &'static str) {}
    fn refused(&self, _reason: Reason) {}
}

impl Observer for () {}

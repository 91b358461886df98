//! A token of either kind, for whoever only passes it on: clients, commands.

use super::{IssuerToken, SignedToken, TokenError, TokenHash};

/// A well-formed token, signed by a device or by an issuer; nothing in it is believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyToken {
    /// RelayTokenV1.
    Device(SignedToken),
    /// A JWT.
    Issuer(IssuerToken),
}

impl AnyToken {
    /// Reads a token's text: a JWT where there is a dot in it, else RelayTokenV1.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        if text.contains('.') {
            IssuerToken::from_text(text).map(Self::Issuer)
        } else {
            SignedToken::from_text(text).map(Self::Device)
        }
    }

    /// Reads a token as it is sent: RelayTokenV1 has its length and no dot, a JWT has dots.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        if bytes.len() != SignedToken::LEN && bytes.contains(&b'.') {
            IssuerToken::from_bytes(bytes).map(Self::Issuer)
        } else {
            SignedToken::from_bytes(bytes).map(Self::Device)
        }
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        match self {
            Self::Device(token) => token.to_text(),
            Self::Issuer(token) => token.as_text().to_owned(),
        }
    }

    /// The bytes as they go over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Device(token) => token.to_bytes().to_vec(),
            Self::Issuer(token) => token.as_text().as_bytes().to_vec(),
        }
    }

    /// The hash that proofs and caches are bound to.
    pub fn hash(&self) -> TokenHash {
        match self {
            Self::Device(token) => token.hash(),
            Self::Issuer(token) => token.hash(),
        }
    }
}

impl From<SignedToken> for AnyToken {
    fn from(token: SignedToken) -> Self {
        Self::Device(token)
    }
}

impl From<IssuerToken> for AnyToken {
    fn from(token: IssuerToken) -> Self {
        Self::Issuer(token)
    }
}

impl std::str::FromStr for AnyToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::from_text(text)
    }
}

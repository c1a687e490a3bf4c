//! Who may log in: whoever can sign the session's id with the account's key.

use ed25519_dalek::{Signature, VerifyingKey};
use statemachine::SessionId;

use crate::refusal::Refusal;

/// What a login's signature is over, before the session's id and the account's name.
const LOGIN_PREFIX: &[u8] = b"chat.v1 login\0";

/// The public half of the key pair that a client derives from a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicKey(pub(crate) [u8; 32]);

impl PublicKey {
    /// Takes the key of a new account.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, Refusal> {
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| Refusal::invalid("a public key has 32 bytes"))?;
        match VerifyingKey::from_bytes(&bytes) {
            // For a weak key there are signatures that fit every message.
            Ok(key) if !key.is_weak() => Ok(Self(bytes)),
            _ => Err(Refusal::invalid("the public key isn't a usable Ed25519 key")),
        }
    }

    /// Whether `signature` lets `session` log in as `account`.
    pub(crate) fn admits(&self, session: SessionId, account: &str, signature: &[u8; 64]) -> bool {
        let mut message = Vec::with_capacity(LOGIN_PREFIX.len() + 16 + account.len());
        message.extend_from_slice(LOGIN_PREFIX);
        message.extend_from_slice(&session.0);
        message.extend_from_slice(account.as_bytes());
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(&message, &Signature::from_bytes(signature)).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_admit_everybody_are_refused() {
        // The neutral element and the point of order two.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut order_two = [0xff; 32];
        (order_two[0], order_two[31]) = (0xec, 0x7f);
        for bytes in [neutral, order_two] {
            assert_eq!(
                PublicKey::new(&bytes),
                Err(Refusal::invalid("the public key isn't a usable Ed25519 key")),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn keys_of_another_length_or_off_the_curve_are_refused() {
        assert!(PublicKey::new(&[1; 31]).is_err());
        assert!(PublicKey::new(&[2; 32]).is_err());
    }
}

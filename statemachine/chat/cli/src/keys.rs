//! An account's key pair, derived from its password. The password never leaves this process.
//!
//! Secret key: Argon2id (19 MiB, 2 passes, 1 lane, version 0x13) of the password, salted with the first 16 bytes of
//! SHA-256("chat.v1 account\0" ‖ account). Part of the protocol: another derivation would lock every account out.

use anyhow::{Context as _, Result};
use argon2::{Algorithm, Argon2, Params, Version};
use ed25519_dalek::{Signer as _, SigningKey};
use replicator_client::SessionId;
use sha2::{Digest as _, Sha256};

const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// The key pair of an account.
pub(crate) struct AccountKey {
    account: String,
    key: SigningKey,
}

impl AccountKey {
    /// Takes about 20 ms and 19 MiB.
    pub(crate) fn derive(account: &str, password: &str) -> Result<Self> {
        let salt = Sha256::new().chain_update(b"chat.v1 account\0").chain_update(account).finalize();
        let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(32)).context("Argon2id's parameters")?;
        let mut secret = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password.as_bytes(), &salt[..16], &mut secret)
            .context("cannot derive a key from the password")?;
        Ok(Self { account: account.to_owned(), key: SigningKey::from_bytes(&secret) })
    }

    /// The account's name.
    pub(crate) fn account(&self) -> &str {
        &self.account
    }

    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// The signature that logs `session` in. Of no use in another session.
    pub(crate) fn sign_login(&self, session: SessionId) -> [u8; 64] {
        let message = [b"chat.v1 login\0", &session.0[..], self.account.as_bytes()].concat();
        self.key.sign(&message).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The expected values come from another implementation (Python's cryptography 48, on OpenSSL).
    #[test]
    fn derivation_and_signature_are_fixed() {
        let key = AccountKey::derive("alice", "correct horse battery staple").unwrap();
        assert_eq!(hex(key.key.as_bytes()), "7217d5c2958180c287d3af512de46dc96eaa29e3ff4ce90f3e116c964b46418c");
        assert_eq!(hex(&key.public_key()), "06d4929c1170eed49be51230fa23f268f9af0a2881efb69a24d9f0c996dc2a60");
        let session = SessionId(std::array::from_fn(|i| i as u8));
        assert_eq!(
            hex(&key.sign_login(session)),
            "2ba8252db815860dd5a24e59616d12b3bf617fa45f6a9720d073d8d44e8909541cb0426da4d1a38e0fafa5233e6c8c7d451f28406bff97f7a644812f7a03e505"
        );
    }

    #[test]
    fn equal_passwords_of_two_accounts_give_two_keys() {
        let alice = AccountKey::derive("alice", "secret").unwrap();
        let bob = AccountKey::derive("bob", "secret").unwrap();
        assert_ne!(alice.public_key(), bob.public_key());
    }
}

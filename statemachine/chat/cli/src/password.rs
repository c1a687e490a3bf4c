//! Where the password comes from: a file, the environment, or the terminal, without echo.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::failure::usage;

/// The environment's variable.
const VARIABLE: &str = "CHAT_PASSWORD";

/// An existing account's password.
pub(crate) fn existing(account: &str, file: Option<&Path>) -> Result<String> {
    match given(file)? {
        Some(password) => Ok(password),
        None => ask(&format!("Password of {account}: ")),
    }
}

/// A new account's password: asked for twice, because a typing error could never be corrected.
pub(crate) fn new(account: &str, file: Option<&Path>) -> Result<String> {
    if let Some(password) = given(file)? {
        return Ok(password);
    }
    let password = ask(&format!("New password of {account}: "))?;
    if ask("The same again: ")? != password {
        bail!("the two passwords differ; nothing was done");
    }
    Ok(password)
}

/// The password that was given beforehand, if one was.
pub(crate) fn given(file: Option<&Path>) -> Result<Option<String>> {
    let password = if let Some(file) = file {
        let content =
            fs::read_to_string(file).with_context(|| format!("cannot read the password file {}", file.display()))?;
        content.lines().next().unwrap_or_default().to_owned()
    } else if let Some(password) = env::var_os(VARIABLE) {
        password.into_string().map_err(|_| usage(format!("{VARIABLE} is not UTF-8")))?
    } else {
        return Ok(None);
    };
    if password.is_empty() {
        bail!("the password is empty");
    }
    Ok(Some(password))
}

fn ask(prompt: &str) -> Result<String> {
    let password = rpassword::prompt_password(prompt).map_err(|error| {
        usage(format!(
            "there is no terminal to ask for the password ({error}); give --password-file FILE or set {VARIABLE}"
        ))
    })?;
    if password.is_empty() {
        bail!("the password is empty");
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_file_is_the_password() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "pass word \nmore\n").unwrap();
        assert_eq!(existing("alice", Some(&file)).unwrap(), "pass word ");
        fs::write(&file, "\n").unwrap();
        assert_eq!(existing("alice", Some(&file)).unwrap_err().to_string(), "the password is empty");
        let missing = existing("alice", Some(&folder.path().join("none"))).unwrap_err().to_string();
        assert!(missing.contains("cannot read the password file"), "{missing}");
    }
}

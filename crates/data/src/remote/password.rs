//! Passwords that the user enters at the terminal (`ask_password`), once for each remote and process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::error::DataError;

/// Prompts for a password, which is not shown.
///
/// # Errors
/// [`DataError::Config`] without a terminal.
pub(crate) fn ask(place: &str, user: &str) -> Result<String, DataError> {
    static ENTERED: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);
    let mut entered = ENTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let entered = entered.get_or_insert_default();
    let key = format!("{user}\n{place}");
    if let Some(password) = entered.get(&key) {
        return Ok(password.clone());
    }
    let failed = |error: std::io::Error| {
        DataError::Config(format!("the password for '{place}' cannot be entered: {error}; set the option 'password'"))
    };
    let mut terminal = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(failed)?;
    let before = tcgetattr(&terminal).map_err(|error| failed(error.into()))?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    write!(terminal, "Password of user '{user}' for {place}: ").map_err(failed)?;
    tcsetattr(&terminal, OptionalActions::Flush, &hidden).map_err(|error| failed(error.into()))?;
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    // Shown input is restored first, also after a failure.
    let _ = tcsetattr(&terminal, OptionalActions::Flush, &before);
    writeln!(terminal).and(read.map(drop)).map_err(failed)?;
    let password = line.trim_end_matches(['\r', '\n']).to_owned();
    entered.insert(key, password.clone());
    Ok(password)
}

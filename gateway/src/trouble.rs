//! Why a database request failed.

use std::error::Error;
use std::fmt;

#[derive(Debug, Clone)]
pub enum Trouble {
    /// The database did not answer: try again. The reason is for the operator.
    Away(String),
    /// The database refused the request.
    Refused { code: String, message: String, hint: Option<String> },
}

impl Trouble {
    pub fn late() -> Self {
        Trouble::Away("no answer in time".into())
    }

    pub fn unexpected() -> Self {
        Trouble::Refused {
            code: "XX000".into(),
            message: "the database gave an unexpected answer".into(),
            hint: None,
        }
    }

    /// Whether the error says something about rights. Otherwise it is transient, and a retry may get another
    /// answer: deadlocks, serialization conflicts, lock and statement timeouts.
    pub fn is_verdict(&self) -> bool {
        match self {
            Trouble::Away(_) => false,
            Trouble::Refused { code, .. } => !(code.starts_with("40") || code == "55P03" || code == "57014"),
        }
    }

    /// The message for the developer of a page.
    pub fn reason(&self) -> String {
        match self {
            Trouble::Away(_) => "UnableToConnectToProject: the database does not answer".into(),
            Trouble::Refused { code, message, hint } => {
                let name = if code == "42501" { "Unauthorized" } else { "Refused" };
                match hint {
                    Some(hint) => format!("{name}: {message}. {hint}"),
                    None => format!("{name}: {message}"),
                }
            }
        }
    }
}

/// The message for the operator.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Away(why) => write!(f, "the database does not answer: {why}"),
            Trouble::Refused { code, message, hint: Some(hint) } => write!(f, "{message} ({code}). {hint}"),
            Trouble::Refused { code, message, hint: None } => write!(f, "{message} ({code})"),
        }
    }
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            // Shutdown, crash, too many connections, startup: the database will be back.
            Some(e) if e.code().code().starts_with("57P") || e.code().code().starts_with("53") => {
                Trouble::Away(e.message().into())
            }
            Some(e) => Trouble::Refused {
                code: e.code().code().into(),
                message: e.message().into(),
                hint: e.hint().map(Into::into),
            },
            None if error.is_closed() || error.source().is_some() => {
                let mut why = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    // Some errors already include their cause.
                    if !why.contains(&cause.to_string()) {
                        why.push_str(&format!(": {cause}"));
                    }
                    source = cause.source();
                }
                Trouble::Away(why)
            }
            None => Trouble::unexpected(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_no_verdict() {
        let refused = |code: &str| Trouble::Refused { code: code.into(), message: String::new(), hint: None };
        for code in ["42501", "P0001", "P0003", "22P02", "XX000"] {
            assert!(refused(code).is_verdict(), "{code}");
        }
        for code in ["40001", "40P01", "55P03", "57014"] {
            assert!(!refused(code).is_verdict(), "{code}");
        }
        assert!(!Trouble::late().is_verdict());
    }
}

//! Why the database did not do something.

/// Why something was not done.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The database did not answer: try again.
    Away,
    /// It said no.
    Refused { code: String, message: String, hint: Option<String> },
}

impl Trouble {
    pub fn unexpected() -> Self {
        Trouble::Refused {
            code: "XX000".into(),
            message: "the database gave an unexpected answer".into(),
            hint: None,
        }
    }

    /// For the developer of a page.
    pub fn reason(&self) -> String {
        match self {
            Trouble::Away => "UnableToConnectToProject: the database does not answer".into(),
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

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            // Shutdown, crash, too many connections, starting up: it will be back.
            Some(e) if e.code().code().starts_with("57P") || e.code().code().starts_with("53") => {
                Trouble::Away
            }
            Some(e) => Trouble::Refused {
                code: e.code().code().into(),
                message: e.message().into(),
                hint: e.hint().map(Into::into),
            },
            None if error.is_closed() || std::error::Error::source(&error).is_some() => Trouble::Away,
            None => Trouble::unexpected(),
        }
    }
}

//! The configuration, from the command line and the environment. Configuration errors are reported at
//! startup, one sentence each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};

/// Presence for browsers: Phoenix channels, as @supabase/realtime-js and phoenix speak them, and server-sent events,
/// over a PostgreSQL database with presence_ext.
///
/// Every flag is also an environment variable: --leave-grace is PRESENCE_GATEWAY_LEAVE_GRACE.
#[derive(Parser, Debug, Clone)]
#[command(name = "presence-gateway", version, group(ArgGroup::new("key").required(true).args(["jwt_secret", "jwks"])))]
pub struct Config {
    /// Connection string. The login must be a superuser or in presence.trusted_login_roles, and must be
    /// allowed to SET ROLE to each --role and to --service-role.
    #[arg(long, env = "PRESENCE_GATEWAY_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: String,

    /// Secret for HS256 tokens. A token's `kid` is ignored: there is only one key.
    #[arg(long, env = "PRESENCE_GATEWAY_JWT_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,

    /// File with a JSON Web Key Set: keys for HS256, RS256 and ES256. Reloaded when it changes, and on
    /// SIGHUP.
    #[arg(long, env = "PRESENCE_GATEWAY_JWKS", value_name = "FILE")]
    pub jwks: Option<PathBuf>,

    /// Address to listen on.
    #[arg(long, env = "PRESENCE_GATEWAY_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:4000")]
    pub listen: SocketAddr,

    /// Admit clients without a token: each socket is a user with a generated id and the first --role. With
    /// --jwt-secret, POST /anonymous issues a token to a page that wants its visitor to stay the same user.
    #[arg(long, env = "PRESENCE_GATEWAY_ANONYMOUS")]
    pub anonymous: bool,

    /// Also serve the files in this folder, so that a page and the gateway share one address.
    #[arg(long, env = "PRESENCE_GATEWAY_PAGE", value_name = "FOLDER")]
    pub page: Option<PathBuf>,

    /// How long the members of a closed socket stay, in case the client reconnects.
    #[arg(long, env = "PRESENCE_GATEWAY_LEAVE_GRACE", value_name = "TIME", default_value = "3s",
          value_parser = humantime::parse_duration)]
    pub leave_grace: Duration,

    /// Origins of pages that may connect, such as https://example.org; separate several with commas, or
    /// repeat the flag. By default all. Clients that send no Origin are not browsers, and may always connect.
    #[arg(long = "origin", env = "PRESENCE_GATEWAY_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub origins: Vec<String>,

    /// The `aud` that tokens must have. By default any.
    #[arg(long, env = "PRESENCE_GATEWAY_AUDIENCE", value_name = "AUDIENCE")]
    pub audience: Option<String>,

    /// Database roles that a token may name in `role`; tokens that name none get the first.
    #[arg(
        long = "role",
        env = "PRESENCE_GATEWAY_ROLE",
        value_name = "ROLE",
        default_value = "authenticated",
        value_delimiter = ','
    )]
    pub roles: Vec<String>,

    /// Role that reads everything, and renews and removes this gateway's members. By default the login
    /// itself.
    #[arg(long, env = "PRESENCE_GATEWAY_SERVICE_ROLE", value_name = "ROLE")]
    pub service_role: Option<String>,

    /// Connections for requests of users. The gateway opens two more, for listening and for its own requests.
    #[arg(long, env = "PRESENCE_GATEWAY_POOL", value_name = "NUMBER", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub pool: u16,

    /// Name of this gateway, by which it finds its own members again after a restart. Two gateways on one
    /// database must have different names. By default a random name.
    #[arg(long, env = "PRESENCE_GATEWAY_NAME", value_name = "NAME", value_parser = name)]
    pub name: Option<String>,

    /// Time over which all sockets are closed after SIGTERM, so that clients do not all reconnect at once.
    #[arg(long, env = "PRESENCE_GATEWAY_DRAIN", value_name = "TIME", default_value = "5s",
          value_parser = humantime::parse_duration)]
    pub drain: Duration,

    /// Maximum number of open sockets and event streams.
    #[arg(long, env = "PRESENCE_GATEWAY_MAX_SOCKETS", value_name = "NUMBER", default_value_t = 20_000)]
    pub max_sockets: usize,

    /// Maximum number of open sockets and event streams of one user.
    #[arg(long, env = "PRESENCE_GATEWAY_MAX_SOCKETS_PER_USER", value_name = "NUMBER", default_value_t = 100)]
    pub max_sockets_per_user: usize,

    /// Maximum number of channels of one socket.
    #[arg(long, env = "PRESENCE_GATEWAY_MAX_CHANNELS", value_name = "NUMBER", default_value_t = 100)]
    pub max_channels: usize,

    /// Maximum number of calls per second of one socket; joins count as five, heartbeats do not count.
    #[arg(long, env = "PRESENCE_GATEWAY_MAX_CALLS", value_name = "NUMBER", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_calls: u32,

    /// Maximum number of rooms and members that are held only because audiences name their rooms. Beyond
    /// that, the rooms whose audiences name the most are listed as each user, at most once a second.
    #[arg(long, env = "PRESENCE_GATEWAY_MAX_NAMED", value_name = "NUMBER", default_value_t = 100_000)]
    pub max_named: usize,

    /// Largest frame that a client may send, in bytes.
    #[arg(long, env = "PRESENCE_GATEWAY_MAX_FRAME", value_name = "BYTES", default_value_t = 256 * 1024)]
    pub max_frame: usize,
}

fn name(given: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if given.is_empty() || given.len() > 63 || !given.chars().all(allowed) {
        return Err("it is 1 to 63 letters, digits, and any of - _ . :".into());
    }
    Ok(given.into())
}

impl Config {
    /// Checks that the parser does not make, and brings origins into their canonical form.
    pub fn check(mut self) -> Result<Self, String> {
        if self.roles.iter().any(|role| role.is_empty() || role == "none") {
            return Err("--role: an empty name, or none, is no role".into());
        }
        if let Some(service) = &self.service_role
            && self.roles.contains(service)
        {
            return Err(format!("--role {service}: a token may not name the service role"));
        }
        for origin in &mut self.origins {
            *origin = origin.trim_end_matches('/').to_ascii_lowercase();
            if !origin.contains("://") {
                return Err(format!("--origin {origin}: it begins with http:// or https://"));
            }
        }
        if self.leave_grace > Duration::from_secs(600) || self.drain > Duration::from_secs(600) {
            return Err("--leave-grace and --drain are at most 10 minutes".into());
        }
        if let Some(page) = self.page.as_ref().filter(|page| !page.join("index.html").is_file()) {
            return Err(format!("--page {}: there is no index.html", page.display()));
        }
        if self.max_frame < 1024 {
            return Err("--max-frame is at least 1024".into());
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const DOCUMENTED: &str = include_str!("../../docs/gateway.md");

    #[test]
    fn every_flag_is_documented_with_its_default() {
        let command = Config::command();
        let mut flags: Vec<_> = command
            .get_arguments()
            .map(|flag| {
                let default: Vec<_> =
                    flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
                (flag.get_long().unwrap().to_owned(), default.join(","))
            })
            .filter(|(flag, _)| !["help", "version"].contains(&flag.as_str()))
            .collect();
        let mut documented: Vec<_> = DOCUMENTED
            .lines()
            .filter_map(|line| line.strip_prefix("| `--")?.split_once("` | "))
            .map(|(flag, rest)| {
                let default = rest.split(" |").next().unwrap_or_default();
                let default = if default.starts_with('`') { default.trim_matches('`') } else { "" };
                (flag.split(' ').next().unwrap_or_default().to_owned(), default.to_owned())
            })
            .collect();
        flags.sort();
        documented.sort();
        assert_eq!(flags, documented);
    }

    #[test]
    fn every_metric_is_documented() {
        for line in include_str!("metrics.rs").lines().filter(|line| line.contains("!(\"presence_gateway_")) {
            let name = line.split('"').nth(1).unwrap();
            assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_a_sentence() {
        let check = |args: &[&str]| {
            let needed = ["presence-gateway", "--database", "x", "--jwt-secret", "y"];
            Config::try_parse_from(needed.iter().chain(args))
                .map_err(|e| e.to_string())
                .and_then(Config::check)
        };
        assert!(
            check(&["--role", "a", "--role", "b", "--origin", "https://Example.org/"]).is_ok_and(|config| {
                config.roles == ["a", "b"] && config.origins == ["https://example.org"]
            })
        );
        for (args, why) in [
            (&["--page", "/nowhere"][..], "no index.html"),
            (&["--role", "s", "--service-role", "s"][..], "may not name the service role"),
            (&["--origin", "example.org"], "begins with"),
            (&["--leave-grace", "1h"], "10 minutes"),
            (&["--leave-grace", "soon"], "--leave-grace"),
            (&["--name", "a/b"], "letters, digits"),
            (&["--jwks", "f"], "cannot be used with"),
            (&["--max-frame", "1"], "1024"),
        ] {
            assert!(check(args).is_err_and(|reason| reason.contains(why)), "{args:?}");
        }
        assert!(Config::try_parse_from(["presence-gateway", "--database", "x"]).is_err());
    }
}

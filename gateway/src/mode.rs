//! How the database reports changes, and whether settings that apply only to new sessions have changed.

use crate::database::Trouble;
use crate::listener::Listener;

/// Doorbell mode applies if it is configured, or if somebody has added or changed a policy: the twin table
/// has only the policies that the extension created.
const MODE: &str = "with policies as ( \
         select c.relname, p.polname, p.polcmd, p.polpermissive, p.polroles, pg_get_expr(p.polqual, p.polrelid) as rule \
         from pg_catalog.pg_policy p join pg_catalog.pg_class c on c.oid = p.polrelid \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where (n.nspname, c.relname) in (('presence', 'member'), ('_presence', 'member_twin')) \
         and p.polcmd in ('r', '*')), \
     own as (select polname, polcmd, polpermissive, polroles, rule from policies where relname = 'member'), \
     made as (select polname, polcmd, polpermissive, polroles, rule from policies where relname = 'member_twin') \
     select current_setting('presence.notify_payload') = 'doorbell' \
         or exists (table own except table made) or exists (table made except table own), \
     coalesce((select string_agg(s::text, ' ' order by s::text) from pg_catalog.pg_db_role_setting s), '')";

impl Listener {
    /// Checks whether events carry everything or only announce that something has changed, and whether
    /// settings that apply only to new sessions have changed.
    pub async fn look_at_mode(&self) -> Result<(), Trouble> {
        loop {
            let rows = self.database.as_service(MODE, &[]).await?;
            let row = rows.first().ok_or_else(Trouble::unexpected)?;
            let (doorbell, settings): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
            if self.database.see_settings(settings) {
                self.recheck.notify_one();
                continue; // in a new session
            }
            if self.rooms.set_doorbell(doorbell) {
                self.rooms.want_all();
                self.recheck.notify_one();
            }
            return Ok(());
        }
    }
}

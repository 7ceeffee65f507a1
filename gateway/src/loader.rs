//! Loads the rows that rooms want: all of them, or those that did not fit into an event.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::database::{LIST, Trouble};
use crate::listener::{Hearing, Listener};
use crate::row::{Key, Member};

/// Maximum number of rooms, and of single rows, in one query.
const BATCH: usize = 200;

impl Listener {
    /// Loads the rows that rooms want, whenever they want some.
    pub async fn keep_loading(self: Arc<Self>) {
        loop {
            let rooms = self.rooms.begin_loading(BATCH);
            let rows = self.rooms.begin_loading_rows(BATCH);
            if rooms.is_empty() && rows.is_empty() {
                self.rooms.wanted.notified().await;
                continue;
            }
            // A list made before the connection listens would miss the changes in between.
            let hears = *self.state.lock().unwrap_or_else(PoisonError::into_inner) == Hearing::All;
            let loaded = if hears { self.load(&rooms, &rows).await } else { Err(Trouble::late()) };
            if let Err(trouble) = loaded {
                if hears {
                    tracing::warn!(reason = %trouble, "could not list rooms; trying again");
                }
                self.rooms.loading_failed(rooms, rows);
                tokio::time::sleep(Duration::from_millis(if hears { 500 } else { 20 })).await;
            }
        }
    }

    async fn load(&self, rooms: &[Arc<str>], rows: &[(Arc<str>, Arc<Key>)]) -> Result<(), Trouble> {
        if !rooms.is_empty() {
            // The order matters: events published up to this seq are then in the list.
            let seq = self.database.as_service("select presence.seq()", &[]).await?;
            let seq: i64 = seq.first().ok_or_else(Trouble::unexpected)?.try_get(0)?;
            let names: Vec<&str> = rooms.iter().map(|room| &**room).collect();
            let mut listed: HashMap<String, Vec<_>> = Default::default();
            for row in self.database.as_service(LIST, &[&names]).await? {
                let member: Member =
                    serde_json::from_str(row.try_get(1)?).map_err(|_| Trouble::unexpected())?;
                listed.entry(row.try_get(0)?).or_default().extend(member.into_row());
            }
            for room in rooms {
                self.rooms.install(room, listed.remove(&**room).unwrap_or_default(), seq);
            }
        }
        if !rows.is_empty() {
            let names: Vec<&str> = rows.iter().map(|(room, _)| &**room).collect();
            let member_ids: Vec<&str> = rows.iter().map(|(_, key)| &*key.member_id).collect();
            let connection_ids: Vec<&str> = rows.iter().map(|(_, key)| &*key.connection_id).collect();
            let some = format!(
                "{LIST} and (o.room, o.member_id, o.connection_id) in \
                 (select * from unnest($1::text[], $2::text[], $3::text[]))"
            );
            for row in self.database.as_service(&some, &[&names, &member_ids, &connection_ids]).await? {
                let member: Member =
                    serde_json::from_str(row.try_get(1)?).map_err(|_| Trouble::unexpected())?;
                if let Some(member) = member.into_row() {
                    self.rooms.put(row.try_get(0)?, member, None);
                }
            }
        }
        Ok(())
    }
}

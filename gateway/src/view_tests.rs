//! Changes of rows arrive in any order; what is shown follows them.

use super::*;
use crate::mailbox::Mailbox;
use crate::row::Member;

struct Page {
    view: View,
    mailbox: Arc<Mailbox>,
}

fn identity() -> Arc<Identity> {
    Arc::new(Identity { role: "authenticated".into(), claims: "{}".into(), expires: None })
}

impl Page {
    fn open(rooms: &Arc<Rooms>, room: &str, user: &str, tokens: &[&str]) -> Self {
        let mailbox = Arc::<Mailbox>::default();
        let viewer = Viewer { identity: identity(), mailbox: mailbox.clone(), user_id: None };
        let mut view = View::open(rooms, room.into(), viewer);
        view.take_rights(rights(user, tokens, true));
        Self { view, mailbox }
    }

    /// Members that joined, and members that left.
    fn diff(&mut self) -> (Vec<String>, Vec<String>) {
        let Some(changes) = self.mailbox.take().remove(&self.view.id) else { return Default::default() };
        let diff = self.view.diff(&changes);
        let names = |rows: &[Arc<Row>]| {
            let mut names: Vec<_> =
                rows.iter().map(|row| format!("{} {}", row.key.member_id, row.version)).collect();
            names.sort();
            names
        };
        (names(&diff.joins), names(&diff.leaves))
    }
}

fn rights(user: &str, tokens: &[&str], read: bool) -> Arc<Rights> {
    Arc::new(Rights {
        user_id: Some(user.into()),
        tokens: tokens.iter().map(|token| Arc::from(*token)).collect(),
        read,
        any_member_id: false,
        listed: None,
    })
}

fn row(member: &str, version: i64, audience: &[&str]) -> Row {
    let text = serde_json::json!({
        "member_id": member, "connection_id": "", "user_id": member, "version": version, "status": null,
        "state": {}, "metadata": {}, "joined_at": null, "audience": audience,
    });
    serde_json::from_str::<Member>(&text.to_string()).unwrap().into_row().unwrap()
}

fn key(member: &str) -> Key {
    Key::here(member.into(), "".into())
}

fn load(rooms: &Rooms, room: &str, rows: Vec<Row>) {
    rooms.begin_loading(100);
    rooms.install(&room.into(), rows, 0);
}

/// Number of rooms, of their rows, and of rooms that are listed as each user.
fn held(rooms: &Rooms) -> (usize, usize, usize) {
    let held = rooms.count();
    (held.rooms, held.rows, held.listed)
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn what_happens_while_a_list_is_on_its_way_is_newer_than_the_list() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &["any"]);
    assert!(!page.view.is_ready());
    assert_eq!(rooms.begin_loading(100).len(), 1);
    rooms.put("r", row("new", 5, &["any"]), Some(1));
    rooms.put("r", row("changed", 9, &["any"]), Some(2));
    rooms.remove("r", &key("gone"), 7, 3);
    rooms.put("r", row("back", 4, &["any"]), Some(4));
    rooms.remove("r", &key("back"), 6, 5);
    let listed = vec![
        row("gone", 3, &["any"]),
        row("changed", 8, &["any"]),
        row("old", 2, &["any"]),
        row("back", 8, &["any"]),
    ];
    rooms.install(&"r".into(), listed, 0);
    assert!(page.view.is_ready());
    assert_eq!(page.diff().0, ["back 8", "changed 9", "new 5", "old 2"]);
}

#[test]
fn the_newest_version_wins_and_old_news_is_none() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &["any"]);
    rooms.begin_loading(100);
    rooms.install(&"r".into(), vec![row("a", 5, &["any"])], 100);
    page.diff();
    rooms.put("r", row("a", 4, &["any"]), Some(101));
    rooms.remove("r", &key("a"), 4, 102);
    rooms.put("r", row("ghost", 3, &["any"]), Some(100)); // the list is newer
    assert_eq!(page.diff(), (vec![], vec![]));
    rooms.put("r", row("a", 6, &["any"]), Some(103));
    assert_eq!(page.diff(), (list(&["a 6"]), list(&["a 5"])));
    // Several changes before a look are one change.
    rooms.remove("r", &key("a"), 7, 104);
    rooms.put("r", row("a", 8, &["any"]), Some(105));
    assert_eq!(page.diff(), (list(&["a 8"]), list(&["a 6"])));
    rooms.put("r", row("b", 9, &["any"]), Some(106));
    rooms.remove("r", &key("b"), 10, 107);
    assert_eq!(page.diff(), (vec![], vec![]));
}

#[test]
fn the_members_of_another_room_are_known_from_its_rows() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &["any"]);
    load(&rooms, "r", vec![row("a", 1, &["room:other"]), row("b", 2, &["room:r"])]);
    assert_eq!(page.diff(), (vec![], vec![]));
    // The other room is wanted by now, and held as long as an audience names it.
    load(&rooms, "other", vec![]);
    rooms.put("other", row("me", 3, &[]), Some(1));
    assert_eq!(page.diff(), (list(&["a 1"]), vec![]));
    rooms.put("r", row("me", 4, &[]), Some(2));
    assert_eq!(page.diff(), (list(&["b 2", "me 4"]), vec![]));
    rooms.remove("other", &key("me"), 5, 3);
    assert_eq!(page.diff(), (vec![], list(&["a 1"])));
    assert_eq!(held(&rooms).0, 2);
    rooms.put("r", row("a", 6, &["any"]), Some(4));
    assert_eq!(held(&rooms).0, 1);
    assert_eq!(page.diff(), (list(&["a 6"]), vec![]));
    drop(page);
    assert_eq!(held(&rooms), (0, 0, 0));
}

#[test]
fn of_a_room_that_nobody_looks_at_only_who_is_present_is_held() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &["any"]);
    load(&rooms, "r", vec![row("a", 1, &["room:other"])]);
    load(&rooms, "other", vec![row("me", 2, &["room:third"])]);
    assert_eq!(page.diff().0, ["a 1"]);
    assert_eq!(held(&rooms), (2, 2, 0)); // rooms that it names are not held
    assert!(rooms.lock().row("other", &key("me")).is_some_and(|row| row.meta.is_empty()));

    // A new viewer waits for the full rows; who is present there is known meanwhile.
    let mut other = Page::open(&rooms, "other", "you", &["any"]);
    assert!(!other.view.is_ready());
    rooms.put("r", row("b", 3, &["room:other"]), Some(1));
    assert_eq!(page.diff().0, ["b 3"]);
    load(&rooms, "other", vec![row("me", 2, &["room:third"]), row("x", 4, &["any"])]);
    assert!(other.view.is_ready());
    assert_eq!(other.diff().0, ["x 4"]);
    assert_eq!(held(&rooms).0, 3);
    assert!(rooms.lock().row("other", &key("me")).is_some_and(|row| !row.meta.is_empty()));
    drop(other);
    assert_eq!(held(&rooms), (2, 4, 0));
    assert!(rooms.lock().row("other", &key("me")).is_some_and(|row| row.meta.is_empty()));
    assert_eq!(page.diff(), (vec![], vec![]));
}

#[test]
fn where_audiences_name_too_much_the_room_that_names_most_is_listed() {
    let rooms = Arc::new(Rooms::new(4));
    let mut few = Page::open(&rooms, "few", "me", &["any"]);
    let mut many = Page::open(&rooms, "many", "me", &["any"]);
    load(&rooms, "few", vec![row("a", 1, &["room:lobby"])]);
    load(&rooms, "many", vec![row("b", 2, &["room:1", "room:2"])]);
    rooms.begin_loading(100);
    for room in ["lobby", "1", "2"] {
        rooms.install(&room.into(), vec![], 0);
    }
    rooms.put("lobby", row("me", 3, &[]), Some(1));
    assert_eq!((few.diff().0, many.diff().0), (list(&["a 1"]), vec![]));
    assert_eq!(held(&rooms).2, 0);

    // One more member in a named room exceeds the bound.
    rooms.put("1", row("me", 4, &[]), Some(2));
    assert_eq!(held(&rooms), (3, 3, 1));
    assert!(rooms.is_listed("many") && !rooms.is_listed("few"));
    assert_eq!(rooms.take_to_list(), ["many".into()].into());
    assert_eq!(many.diff(), (vec![], vec![])); // the user's own list is on its way
    rooms.remove("lobby", &key("me"), 5, 3);
    assert_eq!(few.diff().1, ["a 1"]);

    // Whatever may change the list requests it: a row, or somebody who enters or leaves a named room.
    assert!(rooms.take_to_list().is_empty());
    rooms.moved("elsewhere");
    assert!(rooms.take_to_list().is_empty());
    rooms.moved("2");
    assert_eq!(rooms.take_to_list().len(), 1);
    rooms.put("many", row("c", 6, &["any"]), Some(4));
    assert_eq!(rooms.take_to_list().len(), 1);
    rooms.want_all();
    assert_eq!(rooms.take_to_list().len(), 1);

    // It is listed only as long as it names rooms and has viewers.
    rooms.put("many", row("b", 7, &["any"]), Some(5));
    assert!(!rooms.is_listed("many"));
    assert_eq!(rooms.take_to_list().len(), 1);
    assert_eq!(many.diff().0, ["b 7", "c 6"]);
    drop((few, many));
    assert_eq!(held(&rooms), (0, 0, 0));
}

#[test]
fn rights_that_change_are_a_diff_and_ones_own_stays() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &["team:1"]);
    let rows = vec![row("a", 1, &["team:1"]), row("b", 2, &["team:2"]), row("me", 3, &["user:nobody"])];
    load(&rooms, "r", rows);
    assert_eq!(page.diff().0, ["a 1", "me 3"]);
    let all = Changes { all: true, ..Changes::default() };
    page.view.take_rights(rights("me", &["team:2"], true));
    let diff = page.view.diff(&all);
    assert_eq!((diff.joins.len(), diff.leaves.len()), (1, 1));
    page.view.take_rights(rights("me", &["team:2"], false));
    let diff = page.view.diff(&all);
    assert_eq!((diff.joins.len(), diff.leaves.len()), (0, 1));
    assert_eq!(&*page.view.begin()[0].key.member_id, "me");
}

#[test]
fn an_older_answer_and_one_for_another_token_do_not_count() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &[]);
    let answer = |asked, identity| Answer { asked, identity, rights: Ok(rights("me", &[], true)) };
    assert!(page.view.is_news(&answer(2, identity())));
    assert!(!page.view.is_news(&answer(1, identity())));
    let other = Arc::new(Identity { role: "anon".into(), claims: "{}".into(), expires: None });
    assert!(!page.view.is_news(&answer(3, other.clone())));
    page.view.identify(other.clone());
    assert!(page.view.is_news(&answer(3, other)));
}

#[test]
fn where_audiences_do_not_tell_only_ones_own_list_is_shown() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut page = Page::open(&rooms, "r", "me", &["any"]);
    rooms.set_doorbell(true);
    load(&rooms, "r", vec![row("hidden", 1, &["any"])]);
    assert!(!page.view.is_ready());
    assert_eq!(page.diff(), (vec![], vec![]));
    let listed: Arc<[_]> = [Arc::new(row("seen", 2, &[]))].into();
    let rights = Rights { listed: Some(listed), ..Rights::none(&rights("me", &[], true)) };
    page.view.take_rights(Arc::new(rights));
    assert!(page.view.is_ready());
    assert_eq!(&*page.view.begin()[0].key.member_id, "seen");
}

#[test]
fn a_member_has_one_key_however_often_it_changes_and_whoever_came_when() {
    let rooms = Arc::new(Rooms::new(1000));
    let mut pages = vec![Page::open(&rooms, "r", "me", &["any"])];
    load(&rooms, "r", vec![row("a", 1, &["any"])]);
    pages[0].view.begin();
    for version in 2..10 {
        if version == 5 {
            rooms.want_all(); // after a gap
            load(&rooms, "r", vec![row("a", version, &["any"])]);
        }
        rooms.put("r", row("a", version, &["any"]), Some(version));
        let mut page = Page::open(&rooms, "r", "me", &["any"]);
        page.view.begin();
        pages.push(page);
        for page in &mut pages {
            page.diff();
        }
    }
    let shown = pages.iter().flat_map(|page| &page.view.shown);
    let keys: HashSet<_> =
        shown.clone().flat_map(|(key, row)| [Arc::as_ptr(key), Arc::as_ptr(&row.key)]).collect();
    assert_eq!((shown.count(), keys.len()), (9, 1));
    pages.clear();
    assert_eq!((held(&rooms), rooms.count().viewers), ((0, 0, 0), 0));
}

//! Limits: how many connections may be open, in total and per user, and how many calls a socket may make.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Open sockets and event streams, in total and per user.
pub struct Seats {
    taken: AtomicUsize,
    most: usize,
    users: Mutex<HashMap<Arc<str>, usize>>,
    most_per_user: usize,
}

/// One place among the open connections, returned when dropped.
pub struct Seat {
    seats: Arc<Seats>,
    user_id: Option<Arc<str>>,
}

impl Seats {
    pub fn new(most: usize, most_per_user: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most, users: Mutex::default(), most_per_user })
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    pub fn take(self: &Arc<Self>) -> Option<Seat> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let seat = Seat { seats: self.clone(), user_id: None };
        (before < self.most).then_some(seat)
    }

    pub fn take_for(self: &Arc<Self>, user_id: &Arc<str>) -> Option<Seat> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(user_id.clone()).or_default();
        if *count >= self.most_per_user {
            return None;
        }
        *count += 1;
        Some(Seat { seats: self.clone(), user_id: Some(user_id.clone()) })
    }
}

impl Seat {
    pub fn is_for(&self, user_id: &str) -> bool {
        self.user_id.as_deref() == Some(user_id)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(user_id) = &self.user_id else {
            self.seats.taken.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let mut users = self.seats.users.lock().unwrap_or_else(PoisonError::into_inner);
        match users.get_mut(user_id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                users.remove(user_id);
            }
        }
    }
}

/// Allows `a_second` calls per second, and bursts of twice as many.
pub struct Rate {
    a_second: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    pub fn new(a_second: u32) -> Self {
        let a_second = f64::from(a_second);
        Self { a_second, left: 2.0 * a_second, at: Instant::now() }
    }

    /// Err if there are too many calls, with the number of seconds' worth by which they exceed the limit.
    pub fn spend(&mut self, calls: f64) -> Result<(), f64> {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * self.a_second;
        self.at = now;
        self.left = (self.left + gained).min(2.0 * self.a_second) - calls;
        if self.left >= 0.0 { Ok(()) } else { Err(-self.left / self.a_second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_found_and_an_even_stream_is_not() {
        let mut rate = Rate::new(10);
        assert_eq!((0..25).filter(|_| rate.spend(1.0).is_ok()).count(), 20);
        rate.at -= std::time::Duration::from_secs(2);
        assert!(rate.spend(1.0).is_ok());
    }

    #[test]
    fn seats_are_given_back() {
        let seats = Seats::new(1, 1);
        let user: Arc<str> = "a".into();
        let seat = seats.take();
        assert!(seat.is_some() && seats.take().is_none());
        drop(seat);
        assert!(seats.take().is_some());
        let seat = seats.take_for(&user);
        assert!(seat.is_some() && seats.take_for(&user).is_none());
        drop(seat);
        assert!(seats.take_for(&user).is_some());
    }
}

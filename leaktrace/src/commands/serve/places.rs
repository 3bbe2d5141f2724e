//! Places for connections. When all are taken, who has been idle longest makes room: a client that only holds connections
//! shuts nobody out.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::{report::metrics::TurnedAway, units};

/// Who has not taken a byte of an answer for so long counts as idle.
const STALLED: Duration = Duration::from_secs(5);

/// The connections that are open.
pub(super) struct Places {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: BTreeMap<u64, Taken>,
    next: u64,
    turned_away: TurnedAway,
    /// What of it was told.
    told: TurnedAway,
}

struct Taken {
    /// When it was opened, asked for something or took a part of an answer.
    since: Instant,
    /// Whether it has asked for something that it has not yet got.
    answering: bool,
    leave: Arc<Notify>,
}

impl Places {
    /// So many.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if need be that of who has been idle longest; `None` when everyone is being answered.
    pub(super) fn take(self: &Arc<Self>, now: Instant) -> Option<Place> {
        let mut state = self.state();
        if state.taken.len() >= self.most {
            let idle =
                |taken: &Taken| !taken.answering || now.saturating_duration_since(taken.since) >= STALLED;
            let longest = state.taken.iter().filter(|(_, taken)| idle(taken));
            let Some((&number, _)) = longest.min_by_key(|(_, taken)| taken.since) else {
                state.turned_away.refused += 1;
                return None;
            };
            if let Some(taken) = state.taken.remove(&number) {
                taken.leave.notify_one();
            }
            state.turned_away.dropped += 1;
        }
        let (number, leave) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.taken.insert(number, Taken { since: now, answering: false, leave: Arc::clone(&leave) });
        drop(state);
        Some(Place { places: Arc::clone(self), number, leave })
    }

    /// Who was turned away so far.
    pub(super) fn turned_away(&self) -> TurnedAway {
        self.state().turned_away
    }

    /// That somebody was turned away since this was last asked.
    pub(super) fn note(&self) -> Option<String> {
        let mut state = self.state();
        let (all, told) = (state.turned_away, state.told);
        state.told = all;
        (all != told).then(|| {
            format!(
                "note: there are places for {} connections: {} dropped to make room, {} refused",
                self.most,
                units::plural((all.dropped - told.dropped) as usize, "idle one"),
                units::count(all.refused - told.refused),
            )
        })
    }
}

/// The place of a connection, until this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    leave: Arc<Notify>,
}

impl Place {
    /// Notes a whole request.
    pub(super) fn asked(&self) {
        self.change(|taken| taken.answering = true);
    }

    /// Notes that a part of an answer was taken.
    fn took(&self) {
        self.change(|_| {});
    }

    /// Notes that an answer was taken as a whole.
    fn answered(&self) {
        self.change(|taken| taken.answering = false);
    }

    fn change(&self, change: impl FnOnce(&mut Taken)) {
        if let Some(taken) = self.places.state().taken.get_mut(&self.number) {
            change(taken);
            taken.since = Instant::now();
        }
    }

    /// Waits until this place is another's.
    pub(super) async fn is_lost(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.state().taken.remove(&self.number);
    }
}

/// A stream that notes what is taken of answers.
pub(super) struct Noted<'a, S> {
    stream: S,
    place: Option<&'a Place>,
    /// Whether something was written that may not all have gone out.
    writing: bool,
}

impl<'a, S> Noted<'a, S> {
    pub(super) fn new(stream: S, place: Option<&'a Place>) -> Self {
        Self { stream, place, writing: false }
    }

    fn wrote(&mut self, count: usize) {
        if count > 0 {
            self.writing = true;
            self.place.inspect(|place| place.took());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.wrote(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        self.wrote(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper does this when it has nothing more to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        if std::mem::take(&mut self.writing) {
            self.place.inspect(|place| place.answered());
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost(place: &Place) -> bool {
        !place.places.state().taken.contains_key(&place.number)
    }

    #[test]
    fn who_has_been_idle_longest_makes_room() {
        let (places, now) = (Places::new(3), Instant::now());
        let [first, second, third] = [0, 1, 2].map(|_| places.take(now).unwrap());
        first.asked();
        first.answered();
        second.asked();
        let fourth = places.take(now).unwrap();
        assert!(is_lost(&third) && !is_lost(&first) && !is_lost(&second));
        // One that is left by itself is free.
        drop(fourth);
        let fifth = places.take(now).unwrap();
        assert_eq!(places.turned_away(), TurnedAway { dropped: 1, refused: 0 });
        // Whoever is being answered stays, and then nobody else comes.
        first.asked();
        fifth.asked();
        assert!(places.take(Instant::now()).is_none());
        assert_eq!(places.turned_away(), TurnedAway { dropped: 1, refused: 1 });
        let note = places.note().unwrap();
        assert!(note.ends_with("for 3 connections: 1 idle one dropped to make room, 1 refused"), "{note}");
        assert_eq!(places.note(), None);
        // But who takes nothing of its answer is not.
        let _sixth = places.take(Instant::now() + STALLED).unwrap();
        assert!(is_lost(&second));
        // Its end takes nobody else's place.
        drop(second);
        assert_eq!(places.state().taken.len(), 3);
    }
}

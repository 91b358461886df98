//! How many paths a connection has begun lately, known in the moment when it answers on the next one.
//!
//! quinn answers the first packet from another address with a whole datagram, however small that packet was; RFC 9000,
//! section 8.2.1, allows three times as much. Whoever has a connection's keys and writes others' addresses into its packets makes a
//! reflector of that. quinn tells nobody, and to look at each connection takes turns. But it makes a congestion controller
//! for each path, in the task that drives the connection, which then sends, all in one go. So that task carries a count
//! ([`Driven`]), the making of controllers counts ([`path_began`]), and the socket asks ([`is_restless`]).
//!
//! Behind that datagram quinn at once looks for a larger MTU on the new path, with a packet that no budget for addresses
//! that have not proven themselves knows of. So the socket asks for that as well ([`is_second_to`]).

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

#[cfg(any(test, feature = "server"))]
use std::net::SocketAddr;

/// More paths than these within [`WINDOW`] come from no client that moves. A connection that has fewer, and is found when
/// they are looked at, is closed for it; this is for what happens between two looks.
pub(crate) const MAX_PATHS: u32 = 64;
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

thread_local! {
    /// Of the connection that is being driven on this thread.
    static DRIVEN: Cell<Option<(Moves, Now)>> = const { Cell::new(None) };
    /// Of that connection: what it has sent on a path that has just begun.
    static BEGUN: Cell<Begun> = const { Cell::new(Begun::Nothing) };
}

/// What a connection has begun. It goes on to the next turn while nothing could be sent, and to the end of the turn in
/// which something was.
#[derive(Debug, Clone, Copy, Default)]
enum Begun {
    #[default]
    Nothing,
    /// A path, on which nothing was sent yet.
    Path,
    /// And this is where something was sent to last.
    #[cfg(any(test, feature = "server"))]
    Sent(SocketAddr),
}

/// Tells the time.
type Now = fn() -> Instant;

/// Paths begun since a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Moves {
    paths: u32,
    since: Option<Instant>,
}

impl Moves {
    fn add(self, now: Instant) -> Self {
        let fresh = Self { paths: 0, since: Some(now) };
        let Self { paths, since } = if self.is_over(now) { fresh } else { self };
        Self { paths: paths.saturating_add(1), since }
    }

    /// Whether its time has passed, or never begun.
    fn is_over(self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW)
    }

    fn is_restless(self) -> bool {
        self.paths > MAX_PATHS
    }
}

/// A controller was made, for another path than the first if a connection is being driven. Costs nothing elsewhere.
pub(super) fn path_began() {
    if let Some((moves, now)) = DRIVEN.get() {
        DRIVEN.set(Some((moves.add(now()), now)));
        BEGUN.set(Begun::Path);
    }
}

/// Whether this is not the first that is sent there since a path has begun, in the turn in which it did. To be asked of
/// all that is to be sent; a nanosecond.
#[cfg(any(test, feature = "server"))]
pub(crate) fn is_second_to(destination: SocketAddr) -> bool {
    matches!(BEGUN.get(), Begun::Sent(before) if before == destination)
}

/// To be told of all that was sent; a nanosecond.
#[cfg(any(test, feature = "server"))]
pub(crate) fn sent(destination: SocketAddr) {
    if !matches!(BEGUN.get(), Begun::Nothing) {
        BEGUN.set(Begun::Sent(destination));
    }
}

/// Whether what is being sent now is a connection's that begins too many paths. For sockets; a few nanoseconds.
#[cfg(any(test, feature = "server"))]
pub(crate) fn is_restless() -> bool {
    DRIVEN.get().is_some_and(|(moves, _)| moves.is_restless())
}

/// A task that quinn spawned: one that drives a connection, or an endpoint.
pub(super) struct Driven<F: ?Sized> {
    task: Pin<Box<F>>,
    moves: Moves,
    /// Whether a path has begun on which nothing could be sent yet.
    begun: bool,
    now: Now,
}

impl<F: Future<Output = ()> + ?Sized> Driven<F> {
    /// `now` is asked for the time when there is reason to.
    pub(super) fn new(task: Pin<Box<F>>, now: Now) -> Self {
        Self { task, moves: Moves::default(), begun: false, now }
    }
}

impl<F: Future<Output = ()> + ?Sized> Future for Driven<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.moves.is_restless() && self.moves.is_over((self.now)()) {
            self.moves = Moves::default();
        }
        DRIVEN.set(Some((self.moves, self.now)));
        BEGUN.set(if self.begun { Begun::Path } else { Begun::Nothing });
        // Also when it panics: whatever runs on this thread next is another one's.
        let _leave = Leave;
        let polled = self.task.as_mut().poll(cx);
        if let Some((moves, _)) = DRIVEN.get() {
            self.moves = moves;
        }
        self.begun = matches!(BEGUN.get(), Begun::Path);
        polled
    }
}

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        DRIVEN.set(None);
        BEGUN.set(Begun::Nothing);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn more_paths_than_a_client_has_that_moves_are_too_many_for_as_long_as_they_are_new() {
        let start = tokio::time::Instant::now().into_std();
        let mut moves = Moves::default();
        for path in 0..MAX_PATHS {
            moves = moves.add(start + ms(path.into()));
            assert!(!moves.is_restless(), "{path}");
        }
        assert!(moves.add(start + WINDOW - ms(1)).is_restless());
        assert!(!moves.add(start + WINDOW).is_restless());
        // So may one that moves all the time, but not more often.
        let mut moves = Moves::default();
        for second in 0..1000 {
            for _ in 0..6 {
                moves = moves.add(start + ms(1000 * second));
            }
            assert!(!moves.is_restless(), "{second}");
        }
    }

    /// Polls a task once; whether it has ended.
    fn poll(driven: &mut Driven<impl Future<Output = ()>>) -> bool {
        let polled = Pin::new(driven).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(!is_restless(), "nothing is driven now");
        polled
    }

    #[test]
    fn what_is_sent_first_on_a_path_is_told_from_what_follows() {
        let [here, there] = [1, 2].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
        let send = |to| {
            let is_second = is_second_to(to);
            sent(to);
            is_second
        };
        let mut turn = 0;
        let mut driven = Driven::new(
            Box::pin(poll_fn(move |_| {
                turn += 1;
                match turn {
                    // Nothing could be sent yet: that is still to come.
                    2 => path_began(),
                    // To prove the address before, then the new one.
                    3 => assert_eq!([here, there, there, there].map(send), [false, false, true, true]),
                    _ => assert_eq!([there; 3].map(send), [false; 3], "turn {turn}"),
                }
                Poll::<()>::Pending
            })),
            || tokio::time::Instant::now().into_std(),
        );
        assert!((0..4).all(|_| !poll(&mut driven)));
        path_began();
        assert_eq!([here; 2].map(send), [false; 2], "nothing is driven now");
    }

    #[tokio::test(start_paused = true)]
    async fn each_task_has_a_count_of_its_own_and_it_ends() {
        fn now() -> Instant {
            tokio::time::Instant::now().into_std()
        }
        let task = |paths: u32| {
            let mut seen = Vec::new();
            let task = Box::pin(poll_fn(move |_| {
                seen.push(is_restless());
                for _ in 0..paths {
                    path_began();
                }
                seen.push(is_restless());
                match seen.len() {
                    2 | 4 => Poll::Pending,
                    _ => {
                        let many = paths > MAX_PATHS;
                        assert_eq!(seen, [false, many, many, true, false, many], "{paths}");
                        Poll::Ready(())
                    }
                }
            }));
            Driven::new(task, now)
        };
        path_began();
        let (mut many, mut some) = (task(MAX_PATHS + 1), task(MAX_PATHS / 2 + 1));
        for _ in 0..2 {
            assert!(!poll(&mut many));
            assert!(!poll(&mut some));
        }
        tokio::time::advance(WINDOW).await;
        assert!(poll(&mut many) && poll(&mut some));
        let mut panics = Driven::new(Box::pin(async { panic!("as a test asked for") }), now);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut panics)));
        assert!(panicked.is_err() && DRIVEN.get().is_none());
    }
}

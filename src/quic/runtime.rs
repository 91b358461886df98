//! quinn's runtime on tokio, with timers that packets seldom touch.
//!
//! Every packet moves a connection's next deadline: that of the last packet's loss, of an acknowledgement, of
//! silence. Nearly always it moves later, and by the time it would come it has moved again. So the timer leaves
//! what it has armed when the new deadline is only a little later ([`SLACK`]), and when it fires too early it arms
//! the rest. A deadline is never missed, and the task is woken for nothing only when a connection falls
//! silent between two packets.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;
use quinn::{AsyncTimer, AsyncUdpSocket, TokioRuntime};
use tokio::time::{Sleep, sleep_until};

use super::moves::Driven;

/// How much later than what is armed a deadline may be without arming it anew. The deadlines of loss are at least
/// this far ahead, since [`MAX_ACK_DELAY`](super::acks::MAX_ACK_DELAY) is in them, so as long as packets
/// come no timer fires early.
const SLACK: Duration = Duration::from_millis(25);

/// The runtime that endpoints run on.
#[derive(Debug)]
pub(crate) struct Runtime;

impl quinn::Runtime for Runtime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer::new(deadline))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(Driven::new(future, now));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        now()
    }
}

fn now() -> Instant {
    quinn::Runtime::now(&TokioRuntime)
}

pin_project! {
    /// One connection's timer.
    struct Timer {
        #[pin]
        sleep: Sleep,
        // What `sleep` waits for: at most `deadline`, and at most [`SLACK`] earlier.
        armed: Instant,
        deadline: Instant,
        // Whom `sleep` will wake; `None` when it has to be told.
        waker: Option<Waker>,
    }
}

impl Timer {
    fn new(deadline: Instant) -> Self {
        Self { sleep: sleep_until(deadline.into()), armed: deadline, deadline, waker: None }
    }
}

impl AsyncTimer for Timer {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.project();
        *this.deadline = deadline;
        let near_enough = *this.armed <= deadline && deadline - *this.armed <= SLACK;
        if !near_enough || this.sleep.is_elapsed() {
            this.sleep.reset(deadline.into());
            *this.armed = deadline;
            // It may have fired, and forgotten whom to wake.
            *this.waker = None;
        }
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        // What is armed and knows this task needs no more; this is the way of nearly every packet.
        if !this.sleep.is_elapsed() && this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        loop {
            if Future::poll(this.sleep.as_mut(), cx).is_pending() {
                *this.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            *this.waker = None;
            if this.armed >= this.deadline {
                return Poll::Ready(());
            }
            this.sleep.as_mut().reset((*this.deadline).into());
            *this.armed = *this.deadline;
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::Wake,
    };

    use quinn::Runtime as _;
    use tokio::time::advance;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn is_ready(timer: Pin<&mut Timer>, woken: &Arc<Woken>) -> bool {
        timer.poll(&mut Context::from_waker(&woken.clone().into())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn it_fires_at_its_deadline_and_not_before() {
        let start = Runtime.now();
        let woken = Arc::new(Woken::default());
        let mut timer = pin!(Timer::new(start + ms(100)));
        assert!(!is_ready(timer.as_mut(), &woken));
        advance(ms(99)).await;
        assert!(!is_ready(timer.as_mut(), &woken));
        assert_eq!(woken.0.load(Relaxed), 0);
        advance(ms(2)).await;
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(is_ready(timer.as_mut(), &woken));
        // And again, once it has been set anew.
        timer.as_mut().reset(start + ms(200));
        assert!(!is_ready(timer.as_mut(), &woken));
        advance(ms(100)).await;
        assert_eq!(woken.0.load(Relaxed), 2);
        assert!(is_ready(timer.as_mut(), &woken));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_keeps_moving_wakes_nobody_and_is_then_kept() {
        let start = Runtime.now();
        let woken = Arc::new(Woken::default());
        let mut timer = pin!(Timer::new(start + ms(60)));
        assert!(!is_ready(timer.as_mut(), &woken));
        let mut armed = 0;
        for packet in 1..=100_u64 {
            advance(ms(2)).await;
            let before = timer.armed;
            timer.as_mut().reset(start + ms(60 + 2 * packet));
            assert!(!is_ready(timer.as_mut(), &woken));
            armed += usize::from(timer.armed != before);
        }
        assert_eq!(woken.0.load(Relaxed), 0);
        assert!((7..=8).contains(&armed), "armed {armed} times for 100 packets");
        // Silence: too early first, and then just in time.
        advance(ms(59)).await;
        assert!(!is_ready(timer.as_mut(), &woken), "woken {} times", woken.0.load(Relaxed));
        advance(ms(2)).await;
        assert!(is_ready(timer.as_mut(), &woken));
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_is_armed_at_once() {
        let start = Runtime.now();
        let woken = Arc::new(Woken::default());
        let mut timer = pin!(Timer::new(start + ms(1000)));
        assert!(!is_ready(timer.as_mut(), &woken));
        timer.as_mut().reset(start + ms(10));
        advance(ms(11)).await;
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(is_ready(timer.as_mut(), &woken));
        // One in the past, without waiting.
        timer.as_mut().reset(start);
        assert!(is_ready(timer.as_mut(), &woken));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fires_early_arms_the_rest() {
        let start = Runtime.now();
        let woken = Arc::new(Woken::default());
        let mut timer = pin!(Timer::new(start + ms(10)));
        assert!(!is_ready(timer.as_mut(), &woken));
        timer.as_mut().reset(start + ms(30));
        advance(ms(11)).await;
        assert_eq!(woken.0.load(Relaxed), 1, "for nothing");
        assert!(!is_ready(timer.as_mut(), &woken));
        advance(ms(20)).await;
        assert_eq!(woken.0.load(Relaxed), 2);
        assert!(is_ready(timer.as_mut(), &woken));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_set_anew_after_it_fired_unseen_still_wakes() {
        let start = Runtime.now();
        let woken = Arc::new(Woken::default());
        let mut timer = pin!(Timer::new(start + ms(10)));
        assert!(!is_ready(timer.as_mut(), &woken));
        // quinn looks at the clock first, and need not ask a timer whose deadline is past.
        advance(ms(11)).await;
        assert_eq!(woken.0.load(Relaxed), 1);
        timer.as_mut().reset(start + ms(1000));
        assert!(!is_ready(timer.as_mut(), &woken));
        advance(ms(1000)).await;
        assert_eq!(woken.0.load(Relaxed), 2);
        assert!(is_ready(timer.as_mut(), &woken));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_polled_last_is_woken() {
        let start = Runtime.now();
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let mut timer = pin!(Timer::new(start + ms(10)));
        assert!(!is_ready(timer.as_mut(), &first));
        assert!(!is_ready(timer.as_mut(), &second));
        advance(ms(11)).await;
        assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (0, 1));
    }

    #[tokio::test]
    async fn an_endpoint_runs_on_it() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = quinn::Endpoint::new(Default::default(), None, socket, Arc::new(Runtime)).unwrap();
        let nobody = tokio::time::timeout(ms(1), endpoint.accept()).await;
        assert!(nobody.is_err());
        endpoint.close(0_u32.into(), b"");
        assert!(endpoint.accept().await.is_none());
    }
}

//! Whether new work is welcome: one answer, shared by those who know and those who ask.

use std::{
    borrow::Cow,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;

/// Why new work is not welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotReady {
    /// Not everything has been started yet.
    Starting,
    /// The relay is about to stop, or an administrator wants nobody new.
    Draining,
    /// There is no room for another allocation.
    Full,
    /// A part of the relay does not come round: clients of that part are not served.
    Stuck,
}

/// One of the things that were looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// For people.
    pub detail: Cow<'static, str>,
    /// What it means when it is not.
    #[serde(skip)]
    pub otherwise: NotReady,
}

impl Check {
    /// What was looked at, how it is, and what it means when it is not well.
    pub fn new(
        name: &'static str,
        ok: bool,
        detail: impl Into<Cow<'static, str>>,
        otherwise: NotReady,
    ) -> Self {
        Self { name, ok, detail: detail.into(), otherwise }
    }
}

type Look = Box<dyn Fn() -> Vec<Check> + Send + Sync>;

/// Begins as [`NotReady::Starting`]. Leaving is for good: nothing makes it ready again.
#[derive(Clone, Default)]
pub struct Readiness(Arc<State>);

#[derive(Default)]
struct State {
    started: AtomicBool,
    leaving: AtomicBool,
    drained: AtomicBool,
    watched: RwLock<Vec<Look>>,
}

impl Readiness {
    /// Everything has been started.
    pub fn set_ready(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// The relay is about to stop.
    pub fn set_leaving(&self) {
        self.0.leaving.store(true, Ordering::Release);
    }

    /// An administrator wants nobody new, or does again.
    pub fn set_draining(&self, draining: bool) {
        self.0.drained.store(draining, Ordering::Release);
    }

    /// Looks at more, whenever somebody asks. It must not wait.
    pub fn watch(&self, look: impl Fn() -> Vec<Check> + Send + Sync + 'static) {
        self.0.watched.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// All that is looked at.
    pub fn checks(&self) -> Vec<Check> {
        let started = self.0.started.load(Ordering::Acquire);
        let leaving = self.0.leaving.load(Ordering::Acquire);
        let drained = self.0.drained.load(Ordering::Acquire);
        let draining = match (leaving, drained) {
            (true, _) => "the relay is about to stop",
            (false, true) => "an administrator wants nobody new",
            (false, false) => "no",
        };
        let mut checks = vec![
            Check::new(
                "started",
                started,
                if started { "all of it runs" } else { "not everything runs yet" },
                NotReady::Starting,
            ),
            Check::new("draining", !leaving && !drained, draining, NotReady::Draining),
        ];
        let watched = self.0.watched.read().unwrap_or_else(PoisonError::into_inner);
        checks.extend(watched.iter().flat_map(|look| look()));
        checks
    }

    /// Whether new work is welcome.
    ///
    /// # Errors
    /// Why it is not.
    pub fn get(&self) -> Result<(), NotReady> {
        match self.checks().into_iter().find(|check| !check.ok) {
            Some(check) => Err(check.otherwise),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_is_for_good_and_draining_is_not() {
        let readiness = Readiness::default();
        assert_eq!(readiness.get(), Err(NotReady::Starting));
        readiness.set_ready();
        assert_eq!(readiness.clone().get(), Ok(()));
        readiness.set_draining(true);
        assert_eq!(readiness.get(), Err(NotReady::Draining));
        readiness.set_draining(false);
        assert_eq!(readiness.get(), Ok(()));
        readiness.watch(|| vec![Check::new("allocations", false, "none left", NotReady::Full)]);
        assert_eq!(readiness.get(), Err(NotReady::Full));
        readiness.set_leaving();
        readiness.set_ready();
        readiness.set_draining(false);
        assert_eq!(readiness.get(), Err(NotReady::Draining));
    }
}

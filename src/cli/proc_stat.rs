//! What another process on this machine costs, from Linux' `/proc`.

use std::{fs, path::PathBuf, time::Duration};

/// The kernel's clock ticks, the same on every Linux this runs on (`getconf CLK_TCK`).
const TICK: Duration = Duration::from_millis(10);

/// A process that is looked at. Where the system does not tell, the answer is `None`.
#[derive(Debug, Clone)]
pub(super) struct Process {
    folder: PathBuf,
}

impl Process {
    /// `None` when there is no such process.
    pub(super) fn find(pid: u32) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        folder.is_dir().then_some(Self { folder })
    }

    /// CPU time of all its threads that live, to the nanosecond where the kernel counts so.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.cpu_of_threads().or_else(|| self.cpu_in_ticks())
    }

    fn cpu_of_threads(&self) -> Option<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(self.folder.join("task")).ok()? {
            // A thread may end while it is looked at.
            let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else { continue };
            nanos += first_number(&text)?;
        }
        (nanos > 0).then_some(Duration::from_nanos(nanos))
    }

    fn cpu_in_ticks(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.folder.join("stat")).ok()?;
        ticks_in(&text).map(|ticks| TICK * ticks)
    }

    /// Resident memory.
    pub(super) fn rss_kib(&self) -> Option<u64> {
        // The roll-up is exact; `status` lags behind by some pages for each CPU.
        let of = |file: &str, key: &str| kib_in(&fs::read_to_string(self.folder.join(file)).ok()?, key);
        of("smaps_rollup", "Rss:").or_else(|| of("status", "VmRSS:"))
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// utime + stime. The process' name before them, in brackets, may hold anything.
fn ticks_in(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u32 = fields.nth(11)?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn kib_in(text: &str, key: &str) -> Option<u64> {
    first_number(text.lines().find_map(|line| line.strip_prefix(key))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "123 (a) b (c)) S 1 123 123 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 1 0 99 1000 10 18446744073709551615";
        assert_eq!(ticks_in(stat), Some(300));
        assert_eq!(ticks_in("123 (a S 1"), None);
        assert_eq!(kib_in("Name:\tx\nVmRSS:\t   1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(kib_in("Rss:\n", "Rss:"), None);
    }

    #[test]
    fn this_process_costs_something() {
        let this = Process::find(std::process::id()).unwrap();
        assert!(this.rss_kib().unwrap() > 100);
        let before = this.cpu().unwrap();
        let mut x = 1_u64;
        while this.cpu().unwrap() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(this.cpu_in_ticks().is_some());
        assert!(Process::find(u32::MAX).is_none());
    }
}

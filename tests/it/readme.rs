//! The first relay of README.md, with the commands that stand there, and what it says one sees.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Written by the shell when a command has ended.
const ENDED: &str = "=== ended ===";

/// A command, and the lines that are to be seen before the next one.
struct Step {
    command: String,
    seen: Vec<String>,
}

/// The steps in the blocks of this kind.
fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = line == "```console",
            Some(command) if inside => steps.push(Step { command: command.to_owned(), seen: Vec::new() }),
            None if inside => steps.last_mut().unwrap().seen.push(line.to_owned()),
            _ => {}
        }
    }
    steps
}

/// Whether a line is like that; `…` is any text, and blanks are as many as there are.
fn is_like(line: &str, pattern: &str) -> bool {
    let folded = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, pattern) = (folded(line), folded(pattern));
    let parts: Vec<&str> = pattern.split('…').map(str::trim).collect();
    let [first, between @ .., last] = parts.as_slice() else { return line == pattern };
    let Some(rest) = line.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    between.iter().try_fold(rest, |rest, part| Some(rest.split_once(part)?.1)).is_some()
}

/// A shell in a folder of its own, where the program is found, on ports that are free.
struct Shell {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Shell {
    fn start(folder: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_zrc-relay")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut child = Command::new("bash")
            .args(["--noprofile", "--norc", "-m"])
            .current_dir(folder)
            .env_clear()
            .env("PATH", path)
            .env("HOME", folder)
            .env("ZRC_RELAY_RELAY__LISTEN_PORT", "0")
            .env("ZRC_RELAY_OPS__LISTEN_PORT", port())
            .env("ZRC_RELAY_ADMIN__LISTEN_PORT", port())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "exec 2>&1").unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    fn line(&mut self, wanted: &str) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|error| panic!("no {wanted:?}: {error}; seen: {:#?}", self.seen));
        self.seen.push(line.clone());
        line
    }

    /// Runs a command and waits until all has been seen that should be, in this order, and until it has ended.
    fn run(&mut self, command: &str, expected: &[String]) -> Vec<String> {
        let stdin = self.child.stdin.as_mut().unwrap();
        // One in the background is waited for by what it says.
        writeln!(stdin, "{command}\necho '{ENDED}' $?").unwrap();
        let begun = self.seen.len();
        let mut ended = false;
        let mut left: Vec<&String> = expected.iter().filter(|line| *line != "…").collect();
        while !ended || !left.is_empty() {
            let line = self.line(left.first().map_or("end of the command", |line| line));
            if let Some(status) = line.strip_prefix(ENDED) {
                assert_eq!(status.trim(), "0", "{command}: {:#?}", self.seen);
                ended = true;
            } else if left.first().is_some_and(|wanted| is_like(&line, wanted)) {
                left.remove(0);
            }
        }
        self.seen[begun..].to_vec()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Its jobs go with it.
        if let Some(stdin) = &mut self.child.stdin {
            let _ = writeln!(stdin, "kill -KILL $(jobs -p) 2>/dev/null; exit");
        }
        let _ = self.child.wait();
    }
}

#[test]
fn what_readme_says_of_a_first_relay_is_so() {
    let steps = steps(&fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap());
    for word in ["init", "check-config", "token", "serve", "healthcheck", "bench", "list", "kill"] {
        assert!(steps.iter().any(|step| step.command.contains(word)), "no step with {word}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path());
    let mut id = None;
    for Step { command, seen } in &steps {
        // The ports are other ones here.
        let seen: Vec<String> = seen
            .iter()
            .map(|line| {
                ["4433", "9433", "9434"].iter().fold(line.clone(), |line, port| line.replace(port, "…"))
            })
            .collect();
        let command = match &id {
            Some(id) => command.replace(" ID ", &format!(" {id} ")),
            None => command.clone(),
        };
        let said = shell.run(&command, &seen);
        if command.contains("admin list") {
            let row = said.iter().find(|line| line.contains("paired")).unwrap();
            id = Some(row.split_whitespace().next().unwrap()[..4].to_owned());
        }
    }
}

#[test]
fn patterns_are_heeded() {
    for (line, pattern, expected) in [
        ("ready", "ready", true),
        ("ready!", "ready", false),
        ("not ready", "ready", false),
        (" a   b  c", "a … c", true),
        ("a b c d", "a … c", false),
        ("a b c d", "a … c …", true),
        ("x: trying it out", "…: trying it out", true),
        ("x: trying it out now", "…: trying it out", false),
        ("a c", "a … b", false),
    ] {
        assert_eq!(is_like(line, pattern), expected, "{line:?} {pattern:?}");
    }
}

//! `admin`: looks after a running relay by its admin API, and makes the tokens for it.

#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks reads as null")]

mod audit;
mod client;
mod drain;
mod place;
mod show;
mod token;
mod watch;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

pub(super) use self::client::{Client, Reach, plain};
pub(super) use self::show::{bytes, duration};
use super::{Exit, Failure, out};
use crate::config::parse_duration;

/// Look after a running relay: allocations, blocks, draining, tokens, audit log
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --url the relay's Unix socket is asked, which needs no token: only its owner can.
An allocation is named by its id, or by the beginning of it.

Examples:
  zrc-relay admin list --state paired --sort bytes --order desc
  zrc-relay admin kill 3f9a --reason 'too loud'
  zrc-relay admin block 203.0.113.0/24 --for 1h --reason scans
  zrc-relay admin drain --deadline 5m --wait && systemctl stop zrc-relay
  zrc-relay admin token new --name ann --role read >ann.token
  zrc-relay admin stats --url https://relay.example:9434 --token-file ann.token")]
pub(super) struct Admin {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON, as the API answers
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List live allocations
    List(List),
    /// Show one allocation and its connections
    Show { id: String },
    /// End an allocation for good; both sides read why
    Kill {
        id: String,
        /// For both sides to read
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Show totals and state of the relay
    Stats,
    /// Keep a network out, or list those that are kept out
    Block {
        /// An address or a network; without it, the list
        network: Option<String>,
        /// For how long, as 1h; without it, until it is ended
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, requires = "network")]
        lasting: Option<Duration>,
        /// For those who read the list
        #[arg(long, value_name = "TEXT", default_value = "", requires = "network")]
        reason: String,
    },
    /// Let a network in again
    Unblock {
        /// Exactly as it was blocked
        network: String,
    },
    /// Refuse whoever comes, and end all allocations at a deadline
    Drain {
        /// When those who are there have to go
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
        deadline: Duration,
        /// Take it back: whoever is still there stays
        #[arg(long, conflicts_with_all = ["deadline", "status"])]
        undo: bool,
        /// Only say whether, and until when
        #[arg(long, conflicts_with = "deadline")]
        status: bool,
        /// Come back when nobody is left, at the deadline at the latest
        #[arg(long, conflicts_with_all = ["undo", "status"])]
        wait: bool,
    },
    /// Show what happens, as it happens, until interrupted
    Watch,
    /// Show or change what is logged
    Log {
        /// As info, or info,zrc_relay::relay=debug; without it, what is in force
        filter: Option<String>,
    },
    /// Make, list and revoke tokens, in the file of their hashes
    #[command(subcommand)]
    Token(token::Token),
    /// Show or verify the audit log
    #[command(subcommand)]
    Audit(audit::Audit),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only those in this state: waiting, paired, interrupted, deserted
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only those of devices whose id begins so
    #[arg(long, value_name = "HEX")]
    device: Option<String>,
    /// By what: id, bytes, created, expires, activity
    #[arg(long, value_name = "KEY")]
    sort: Option<String>,
    /// asc or desc
    #[arg(long, value_name = "ORDER")]
    order: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

impl Admin {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        let Self { reach, json, what } = self;
        match what {
            What::Token(token) => return token.run(json),
            What::Audit(audit) => return audit.run(&reach, json).await,
            _ => {}
        }
        let client = reach.client()?;
        // What the API answers, and how people are shown it.
        let (answer, show): (Value, fn(&Value) -> String) = match what {
            What::List(list) => (list.fetch(&client).await?, show::allocations),
            What::Show { id } => {
                let id = whole_id(&client, &id).await?;
                (client.get(&format!("/admin/allocations/{id}"), &[]).await?, show::allocation)
            }
            What::Kill { id, reason } => {
                let id = whole_id(&client, &id).await?;
                let path = format!("/admin/allocations/{id}");
                client.ask(Method::DELETE, &path, &[("reason", reason)], None).await?;
                (json!({ "killed": id }), |answer| {
                    format!("killed {}", answer["killed"].as_str().unwrap_or(""))
                })
            }
            What::Stats => (client.get("/admin/stats", &[]).await?, show::stats),
            What::Block { network: None, .. } => (all_blocks(&client).await?, show::blocks),
            What::Block { network: Some(network), lasting, reason } => {
                let secs = lasting.map(|lasting| lasting.as_secs().max(1));
                let body = json!({ "network": network, "expires_in_secs": secs, "reason": reason });
                (client.ask(Method::POST, "/admin/blocks", &[], Some(body)).await?, |answer| {
                    format!("blocked {}", answer["network"].as_str().unwrap_or(""))
                })
            }
            What::Unblock { network } => {
                client.ask(Method::DELETE, "/admin/blocks", &[("network", network.clone())], None).await?;
                (json!({ "unblocked": network }), |answer| {
                    format!("unblocked {}", plain(answer["unblocked"].as_str().unwrap_or("")))
                })
            }
            What::Drain { status: true, .. } => (client.get("/admin/drain", &[]).await?, show::drain),
            What::Drain { undo: true, .. } => {
                client.ask(Method::DELETE, "/admin/drain", &[], None).await?;
                (client.get("/admin/drain", &[]).await?, show::drain)
            }
            What::Drain { deadline, wait, .. } => {
                let body = json!({ "deadline_secs": deadline.as_secs() });
                if wait {
                    client.ask(Method::POST, "/admin/drain", &[], Some(body)).await?;
                    drain::wait(&client, deadline).await?;
                    let answer = client.get("/admin/drain", &[]).await?;
                    return shown(json, &answer, show::drain);
                }
                (client.ask(Method::POST, "/admin/drain", &[], Some(body)).await?, show::drain)
            }
            What::Watch => return watch::watch(&client, json).await,
            What::Log { filter: None } => (client.get("/admin/log", &[]).await?, show::log),
            What::Log { filter: Some(filter) } => {
                let body = json!({ "filter": filter });
                (client.ask(Method::PUT, "/admin/log", &[], Some(body)).await?, show::log)
            }
            What::Token(_) | What::Audit(_) => return Ok(Exit::Ok),
        };
        shown(json, &answer, show)
    }
}

fn shown(json: bool, answer: &Value, show: fn(&Value) -> String) -> Result<Exit, Failure> {
    if json {
        out::json(answer)?
    } else {
        out::data(show(answer))?
    }
    Ok(Exit::Ok)
}

impl List {
    async fn fetch(self, client: &Client) -> Result<Value, Failure> {
        let Self { state, device, sort, order, limit } = self;
        let given = [("state", state), ("device", device), ("sort", sort), ("order", order)];
        let query: Vec<(&str, String)> =
            given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        pages(client, "/admin/allocations", "allocations", query, limit).await
    }
}

async fn all_blocks(client: &Client) -> Result<Value, Failure> {
    pages(client, "/admin/blocks", "blocks", Vec::new(), usize::MAX).await
}

/// A list of at most so many, whatever number of pages that takes.
async fn pages(
    client: &Client,
    path: &str,
    key: &str,
    query: Vec<(&str, String)>,
    limit: usize,
) -> Result<Value, Failure> {
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut query = query.clone();
        query.push(("limit", (limit - all.len()).clamp(1, 1000).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let mut page = client.get(path, &query).await?;
        if let Some(some) = page.get_mut(key).and_then(Value::as_array_mut) {
            all.append(some);
        }
        cursor = match &page["next"] {
            Value::Null => None,
            Value::String(next) => Some(next.clone()),
            // Half of a list would be taken for all of it.
            _ => {
                let why = "this command does not understand how the relay goes on with a list: its version is another, \
                           and zrc-relay of that version lists all of it";
                return Err(Failure::new(Exit::Data, why));
            }
        };
        if cursor.is_none() || all.len() >= limit {
            all.truncate(limit);
            return Ok(json!({ key: all, "total": page["total"], "next": cursor }));
        }
    }
}

/// The one id that begins so.
async fn whole_id(client: &Client, begin: &str) -> Result<String, Failure> {
    if begin.len() == 32 {
        return Ok(begin.to_owned());
    }
    let query = [("id", begin.to_owned()), ("limit", "1".to_owned())];
    let found = client.get("/admin/allocations", &query).await?;
    match (found["total"].as_u64(), found["allocations"][0]["id"].as_str()) {
        (Some(1), Some(id)) => Ok(id.to_owned()),
        (Some(0), _) => Err(Failure::new(Exit::Refused, "there is no live allocation whose id begins so")),
        _ => Err(Failure::new(Exit::Refused, "several ids begin so: give more of it")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        reach: Reach,
    }

    /// A relay that answers each question with the next of these.
    fn relay(answers: Vec<Value>) -> (Client, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let body = answer.to_string();
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        let args = Args::parse_from(["x", "--socket", path.to_str().unwrap()]);
        (args.reach.client().unwrap(), folder)
    }

    #[tokio::test]
    async fn a_list_is_whole_or_is_not_shown() {
        let page =
            |next: Value| json!({ "blocks": [{ "network": "192.0.2.0/24" }], "total": 2, "next": next });
        let (client, _folder) = relay(vec![page(json!("more")), page(Value::Null)]);
        let all = all_blocks(&client).await.unwrap();
        assert_eq!((all["blocks"].as_array().unwrap().len(), &all["next"]), (2, &Value::Null));
        for next in [json!(1000), json!(true), json!({})] {
            let (client, _folder) = relay(vec![page(next.clone())]);
            let failure = all_blocks(&client).await.expect_err(&next.to_string());
            assert!(failure.error.to_string().contains("version"), "{:#}", failure.error);
        }
    }
}

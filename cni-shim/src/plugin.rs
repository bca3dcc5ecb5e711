//! One call from end to end: environment and standard input in, one JSON object and an exit code out.

use std::io::{Read, Write};

use serde_json::Value;

use crate::handover::Budget;
use crate::spec::request::{Call, Command, Environment};
use crate::spec::{CniError, Code, NetConf, Version, config, version};
use crate::{add, check, del, gc, loopback, status};

/// The longest configuration that is read, in bytes.
const MAX_INPUT: u64 = 8 << 20;

/// Serves the call. Nothing but the result or the error object is written to `output`. Returns the exit code.
pub fn run(env: &Environment, input: &mut dyn Read, output: &mut dyn Write, budget: &Budget) -> u8 {
    let mut bytes = Vec::new();
    let result = serve(env, input, &mut bytes, budget);
    let (text, code) = match result {
        Ok(None) => return 0,
        Ok(Some(value)) => (value, 0),
        Err(error) => (error.to_json(version_of(&bytes)), 1),
    };
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Ok(()) => code,
        Err(_) => 1,
    }
}

fn serve(
    env: &Environment,
    input: &mut dyn Read,
    bytes: &mut Vec<u8>,
    budget: &Budget,
) -> Result<Option<Value>, CniError> {
    let call = Call::parse(env)?;
    let read = input.take(MAX_INPUT + 1).read_to_end(bytes);
    read.map_err(|e| CniError::new(Code::Io, format!("cannot read standard input: {e}")))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(CniError::new(
            Code::Decode,
            format!("standard input is longer than {MAX_INPUT} bytes"),
        ));
    }
    if call.command == Command::Version {
        return versions(bytes).map(Some);
    }
    let conf = NetConf::parse(bytes.clone(), call.command)?;
    if loopback::is_meant(&call, &conf) {
        return serve_loopback(&call, &conf);
    }
    match call.command {
        Command::Add => {
            add::run(&call, &conf, budget).map(|result| Some(result.to_json(conf.version)))
        }
        Command::Del => del::run(&call, &conf, budget).map(|()| None),
        Command::Check => check::run(&call, &conf).map(|()| None),
        Command::Gc => gc::run(&call, &conf, budget).map(|()| None),
        Command::Status => status::run(&call, &conf).map(|()| None),
        Command::Version => versions(bytes).map(Some),
    }
}

fn serve_loopback(call: &Call, conf: &NetConf) -> Result<Option<Value>, CniError> {
    match call.command {
        Command::Add => loopback::add(call, conf).map(|result| Some(result.to_json(conf.version))),
        Command::Del => loopback::del(call).map(|()| None),
        Command::Check => loopback::check(call).map(|()| None),
        Command::Gc | Command::Status | Command::Version => Ok(None),
    }
}

/// VERSION needs no standard input; what is there has to be JSON.
fn versions(bytes: &[u8]) -> Result<Value, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(version::answer(None));
    }
    let value = config::decode(bytes)?;
    Ok(version::answer(Some(config::version_text(&value)?)))
}

/// The version to put into an error object.
fn version_of(bytes: &[u8]) -> Option<Version> {
    let value = config::decode(bytes).ok()?;
    Version::parse(config::version_text(&value).ok()?).ok()
}

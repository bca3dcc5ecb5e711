//! The certificates of a cluster: one authority for servers and clients, made by `openssl`.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use super::access::User;

/// A folder with an authority, what it has signed, and the key of service accounts' tokens.
#[derive(Clone, Debug)]
pub(super) struct Pki {
    folder: PathBuf,
    /// Nodes that start side by side may ask for the same one.
    signing: Arc<Mutex<()>>,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Pki {
    pub(super) fn create(folder: PathBuf) -> Result<Pki> {
        let pki = Pki {
            folder,
            signing: Arc::default(),
        };
        let extensions = "basicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign\n";
        pki.request("ca", "CN = selvage-lab\n", extensions, &[])?;
        pki.request("service-accounts", "CN = service-accounts\n", LEAF, &[])?;
        Ok(pki)
    }

    /// The authority's certificate.
    pub(super) fn authority(&self) -> Identity {
        self.identity("ca")
    }

    /// What signs and checks tokens of service accounts.
    pub(super) fn service_accounts(&self) -> Identity {
        self.identity("service-accounts")
    }

    /// A certificate of a server with these names and addresses.
    pub(super) fn server(
        &self,
        name: &str,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> Result<Identity> {
        let names = names.iter().map(|name| format!("DNS:{name}"));
        let addresses = addresses.iter().map(|address| format!("IP:{address}"));
        let all: Vec<String> = names.chain(addresses).collect();
        let extensions = format!(
            "{LEAF}extendedKeyUsage = serverAuth\nsubjectAltName = {}\n",
            all.join(",")
        );
        self.signed(name, &format!("CN = {name}\n"), &extensions)
    }

    /// A certificate of a user; made once.
    pub(super) fn client(&self, user: &User) -> Result<Identity> {
        let name = user.file_name();
        let known = self.identity(&name);
        let _alone = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        if known.certificate.exists() {
            return Ok(known);
        }
        let mut subject = String::new();
        for (number, group) in user.groups.iter().enumerate() {
            writeln!(subject, "{number}.O = {group}")?;
        }
        writeln!(subject, "CN = {}", user.name)?;
        let extensions = format!("{LEAF}extendedKeyUsage = clientAuth\n");
        self.signed(&name, &subject, &extensions)
    }

    fn signed(&self, name: &str, subject: &str, extensions: &str) -> Result<Identity> {
        let ca = self.authority();
        let signer = [
            Path::new("-CA"),
            &ca.certificate,
            Path::new("-CAkey"),
            &ca.key,
        ];
        self.request(name, subject, extensions, &signer)
    }

    fn request(
        &self,
        name: &str,
        subject: &str,
        extensions: &str,
        signer: &[&Path],
    ) -> Result<Identity> {
        let identity = self.identity(name);
        let configuration = self.folder.join(format!("{name}.conf"));
        // The machine's own openssl.cnf may say anything; ours says all.
        let text = format!(
            "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n\
             [subject]\n{subject}[extensions]\n{extensions}"
        );
        fs::write(&configuration, text)?;
        openssl(
            Command::new("openssl")
                .args("req -x509 -nodes -days 3650 -newkey ec".split(' '))
                .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-config"])
                .arg(configuration)
                .arg("-keyout")
                .arg(&identity.key)
                .arg("-out")
                .arg(&identity.certificate)
                .args(signer),
        )?;
        Ok(identity)
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            certificate: self.folder.join(format!("{name}.crt")),
            key: self.folder.join(format!("{name}.key")),
        }
    }
}

const LEAF: &str = "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n";

fn openssl(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .context("openssl is not installed: apt-get install openssl")?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

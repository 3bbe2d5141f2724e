//! Certificates of an agent and of a client, made for one test.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// Writes `agent.crt` and `agent.key` for localhost, `client.pem` with certificate and key, and what has signed each:
/// `ca.crt` and `clients.crt`.
pub fn certificates(place: &Path) {
    let write = |name: &str, text: &str| fs::write(place.join(name), text).unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let signed = |names: &[&str], by: &CertifiedIssuer<'_, KeyPair>, purpose| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        // What has the name of its issuer passes for its own.
        params.distinguished_name.push(DnType::CommonName, names[0].clone());
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
    };
    let (agents, clients) = (authority("agents"), authority("clients"));
    let (certificate, key) =
        signed(&["localhost", "127.0.0.1"], &agents, ExtendedKeyUsagePurpose::ServerAuth);
    write("agent.crt", &certificate);
    write("agent.key", &key);
    write("ca.crt", &agents.pem());
    write("clients.crt", &clients.pem());
    let (certificate, key) = signed(&["client"], &clients, ExtendedKeyUsagePurpose::ClientAuth);
    write("client.pem", &(certificate + &key));
}

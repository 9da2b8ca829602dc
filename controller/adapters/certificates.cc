#include "controller/adapters/certificates.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/adapters/identity.h"
#include "common/ids.h"
#include "common/status.h"

namespace rb::controller {
namespace {

struct Deleter {
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(X509_REQ* p) const { X509_REQ_free(p); }
  void operator()(BIO* p) const { BIO_free(p); }
  void operator()(X509_EXTENSION* p) const { X509_EXTENSION_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Deleter>;

constexpr absl::Duration kAuthorityLife = absl::Hours(24 * 3650);
constexpr absl::Duration kLeafLife = absl::Hours(24 * 730);
// Clocks of hosts differ a little.
constexpr absl::Duration kBackdated = absl::Hours(1);

Owned<BIO> ReadBio(const std::string& pem) {
  return Owned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}
Owned<EVP_PKEY> ReadKey(const std::string& pem) {
  return Owned<EVP_PKEY>(PEM_read_bio_PrivateKey(ReadBio(pem).get(), nullptr, nullptr, nullptr));
}

bool AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Owned<X509_EXTENSION> extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  return extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1;
}

struct Wanted {
  std::string common_name;
  absl::Duration life;
  std::vector<std::pair<int, std::string>> extensions;
};

// `issuer` null: self-signed.
absl::StatusOr<std::string> Issue(EVP_PKEY* subject_key, EVP_PKEY* issuer_key, X509* issuer, const Wanted& wanted,
                                  absl::Time now) {
  const absl::Status failed = absl::InternalError("OpenSSL could not make a certificate");
  const Owned<X509> certificate(X509_new());
  unsigned char serial[16];
  if (certificate == nullptr || RAND_bytes(serial, sizeof(serial)) != 1) return failed;
  serial[0] &= 0x7F;  // a positive number
  const std::unique_ptr<BIGNUM, decltype(&BN_free)> number(BN_bin2bn(serial, sizeof(serial), nullptr), BN_free);
  X509_NAME* name = X509_get_subject_name(certificate.get());
  bool ok = X509_set_version(certificate.get(), 2) == 1 &&
            BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate.get())) != nullptr &&
            ASN1_TIME_set(X509_getm_notBefore(certificate.get()), absl::ToTimeT(now - kBackdated)) != nullptr &&
            ASN1_TIME_set(X509_getm_notAfter(certificate.get()), absl::ToTimeT(now + wanted.life)) != nullptr &&
            X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                       reinterpret_cast<const unsigned char*>(wanted.common_name.data()),
                                       static_cast<int>(wanted.common_name.size()), -1, 0) == 1 &&
            X509_set_pubkey(certificate.get(), subject_key) == 1;
  X509* const signer = issuer != nullptr ? issuer : certificate.get();
  ok = ok && X509_set_issuer_name(certificate.get(), X509_get_subject_name(signer)) == 1;
  for (const auto& [nid, value] : wanted.extensions) ok = ok && AddExtension(certificate.get(), signer, nid, value);
  ok = ok && X509_sign(certificate.get(), issuer_key, EVP_sha256()) > 0;
  const Owned<BIO> out(BIO_new(BIO_s_mem()));
  if (!ok || PEM_write_bio_X509(out.get(), certificate.get()) != 1) return failed;
  char* data = nullptr;
  const long size = BIO_get_mem_data(out.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<std::string> IssueLeaf(const KeyAndCertificate& authority, EVP_PKEY* subject_key, const Wanted& wanted,
                                      absl::Time now) {
  const Owned<EVP_PKEY> authority_key = ReadKey(authority.key_pem);
  const Owned<X509> issuer(PEM_read_bio_X509(ReadBio(authority.certificate_pem).get(), nullptr, nullptr, nullptr));
  if (authority_key == nullptr || issuer == nullptr)
    return absl::DataLossError("the CA's key or certificate is damaged");
  return Issue(subject_key, authority_key.get(), issuer.get(), wanted, now);
}

}  // namespace

absl::StatusOr<KeyAndCertificate> MakeAuthority(absl::Time now) {
  KeyAndCertificate made;
  RB_ASSIGN_OR_RETURN(made.key_pem, NewPrivateKeyPem());
  const Owned<EVP_PKEY> key = ReadKey(made.key_pem);
  Wanted wanted;
  wanted.common_name = absl::StrCat("rbctl CA ", RandomHex(4));
  wanted.life = kAuthorityLife;
  wanted.extensions = {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                       {NID_key_usage, "critical,keyCertSign,cRLSign"},
                       {NID_subject_key_identifier, "hash"}};
  RB_ASSIGN_OR_RETURN(made.certificate_pem, Issue(key.get(), key.get(), nullptr, wanted, now));
  return made;
}

absl::StatusOr<KeyAndCertificate> MakeServerCertificate(const KeyAndCertificate& authority,
                                                        const std::vector<std::string>& names, absl::Time now) {
  KeyAndCertificate made;
  RB_ASSIGN_OR_RETURN(made.key_pem, NewPrivateKeyPem());
  const Owned<EVP_PKEY> key = ReadKey(made.key_pem);
  std::vector<std::string> alternatives;
  for (const std::string& name : names) {
    unsigned char address[16];
    const bool is_address =
        inet_pton(AF_INET, name.c_str(), address) == 1 || inet_pton(AF_INET6, name.c_str(), address) == 1;
    if (name.empty() || name.find_first_of(",;\n\"\\ ") != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("'", name, "' is not a host name"));
    }
    alternatives.push_back(absl::StrCat(is_address ? "IP:" : "DNS:", name));
  }
  Wanted wanted;
  wanted.common_name = "rb-controller";
  wanted.life = kLeafLife;
  wanted.extensions = {{NID_basic_constraints, "critical,CA:FALSE"},
                       {NID_key_usage, "critical,digitalSignature"},
                       {NID_ext_key_usage, "serverAuth"},
                       {NID_subject_alt_name, absl::StrJoin(alternatives, ",")}};
  RB_ASSIGN_OR_RETURN(made.certificate_pem, IssueLeaf(authority, key.get(), wanted, now));
  return made;
}

absl::StatusOr<std::string> SignClientRequest(const KeyAndCertificate& authority, const std::string& request_pem,
                                              const std::string& uri, absl::Time now) {
  std::string name;
  bool is_agent = false;
  if (!ParseIdentityUri(uri, &name, &is_agent)) return absl::InvalidArgumentError("that is not a name");
  if (request_pem.size() > 8192) return absl::InvalidArgumentError("the certificate request is too large");
  const Owned<X509_REQ> request(PEM_read_bio_X509_REQ(ReadBio(request_pem).get(), nullptr, nullptr, nullptr));
  EVP_PKEY* key = request == nullptr ? nullptr : X509_REQ_get0_pubkey(request.get());
  if (key == nullptr || X509_REQ_verify(request.get(), key) != 1) {
    return absl::InvalidArgumentError("the certificate request is not valid");
  }
  Wanted wanted;
  wanted.common_name = name;
  wanted.life = kLeafLife;
  wanted.extensions = {{NID_basic_constraints, "critical,CA:FALSE"},
                       {NID_key_usage, "critical,digitalSignature"},
                       {NID_ext_key_usage, "clientAuth"},
                       {NID_subject_alt_name, absl::StrCat("URI:", uri)}};
  return IssueLeaf(authority, key, wanted, now);
}

bool ParseIdentityUri(absl::string_view uri, std::string* name, bool* is_agent) {
  if (absl::ConsumePrefix(&uri, "rb://agent/")) {
    *is_agent = true;
  } else if (absl::ConsumePrefix(&uri, "rb://operator/")) {
    *is_agent = false;
  } else {
    return false;
  }
  *name = std::string(uri);
  return IsValidName(*name);
}

}  // namespace rb::controller

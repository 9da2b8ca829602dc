#include "common/adapters/identity.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/ids.h"

namespace rb {
namespace {

constexpr absl::string_view kTokenPrefix = "rbjoin1.";
constexpr size_t kLongestToken = 16 << 10;

struct KeyDeleter {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
struct CertificateDeleter {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
struct BioDeleter {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct RequestDeleter {
  void operator()(X509_REQ* request) const { X509_REQ_free(request); }
};

std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

}  // namespace

absl::StatusOr<absl::Time> CertificateExpiry(const std::string& pem) {
  const std::unique_ptr<BIO, BioDeleter> in(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  const std::unique_ptr<X509, CertificateDeleter> certificate(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
  struct tm parts = {};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &parts) != 1) {
    return absl::InvalidArgumentError("that is no certificate in PEM");
  }
  return absl::FromTM(parts, absl::UTCTimeZone());
}

absl::StatusOr<std::string> NewPrivateKeyPem() {
  const std::unique_ptr<EVP_PKEY, KeyDeleter> key(EVP_EC_gen("P-256"));
  const std::unique_ptr<BIO, BioDeleter> out(BIO_new(BIO_s_mem()));
  if (key == nullptr || out == nullptr ||
      PEM_write_bio_PKCS8PrivateKey(out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return absl::InternalError("OpenSSL could not make a private key");
  }
  return TextOf(out.get());
}

absl::StatusOr<std::string> NewCertificateRequestPem(const std::string& private_key_pem,
                                                     const std::string& common_name) {
  const std::unique_ptr<BIO, BioDeleter> in(
      BIO_new_mem_buf(private_key_pem.data(), static_cast<int>(private_key_pem.size())));
  const std::unique_ptr<EVP_PKEY, KeyDeleter> key(PEM_read_bio_PrivateKey(in.get(), nullptr, nullptr, nullptr));
  const std::unique_ptr<X509_REQ, RequestDeleter> request(X509_REQ_new());
  const std::unique_ptr<BIO, BioDeleter> out(BIO_new(BIO_s_mem()));
  if (key == nullptr || request == nullptr || out == nullptr) {
    return absl::InvalidArgumentError("the private key cannot be read");
  }
  X509_NAME* name = X509_REQ_get_subject_name(request.get());
  const bool made =
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(common_name.data()),
                                 static_cast<int>(common_name.size()), -1, 0) == 1 &&
      X509_REQ_set_pubkey(request.get(), key.get()) == 1 && X509_REQ_sign(request.get(), key.get(), EVP_sha256()) > 0 &&
      PEM_write_bio_X509_REQ(out.get(), request.get()) == 1;
  if (!made) return absl::InternalError("OpenSSL could not make a certificate request");
  return TextOf(out.get());
}

std::string FormatJoinToken(const JoinToken& token) {
  const nlohmann::json object = {{"name", token.agent_name},
                                 {"address", token.join_address},
                                 {"link_address", token.link_address},
                                 {"secret", token.secret},
                                 {"ca_pem", token.ca_pem}};
  return absl::StrCat(kTokenPrefix, absl::WebSafeBase64Escape(object.dump()));
}

absl::StatusOr<JoinToken> ParseJoinToken(absl::string_view line) {
  line = absl::StripAsciiWhitespace(line);
  const absl::Status bad = absl::InvalidArgumentError(
      "this is not a join token. Make one on the controller: rb-controller token NAME. Nothing was changed");
  if (line.size() > kLongestToken || !absl::ConsumePrefix(&line, kTokenPrefix)) return bad;
  std::string json;
  if (!absl::WebSafeBase64Unescape(line, &json)) return bad;
  const nlohmann::json object = nlohmann::json::parse(json, nullptr, false);
  if (!object.is_object()) return bad;
  JoinToken token;
  const auto read = [&](const char* key, std::string* value) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_string()) return false;
    *value = found->get<std::string>();
    return true;
  };
  if (!read("name", &token.agent_name) || !read("address", &token.join_address) ||
      !read("link_address", &token.link_address) || !read("secret", &token.secret) || !read("ca_pem", &token.ca_pem) ||
      !IsValidName(token.agent_name)) {
    return bad;
  }
  return token;
}

}  // namespace rb

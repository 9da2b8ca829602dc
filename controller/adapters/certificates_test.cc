#include "controller/adapters/certificates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/adapters/identity.h"
#include "common/test_util.h"

namespace rb::controller {
namespace {

using ::rb::testing::FailsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using X509Pointer = std::unique_ptr<X509, decltype(&X509_free)>;

X509Pointer Parse(const std::string& pem) {
  BIO* bio = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
  X509Pointer certificate(PEM_read_bio_X509(bio, nullptr, nullptr, nullptr), X509_free);
  BIO_free(bio);
  return certificate;
}

// What OpenSSL says of a chain at a time: X509_V_OK, or why not.
int Verify(const std::string& authority_pem, const std::string& certificate_pem, int purpose, absl::Time at) {
  const X509Pointer authority = Parse(authority_pem);
  const X509Pointer certificate = Parse(certificate_pem);
  if (authority == nullptr || certificate == nullptr) return -1;
  X509_STORE* store = X509_STORE_new();
  X509_STORE_add_cert(store, authority.get());
  X509_STORE_CTX* context = X509_STORE_CTX_new();
  X509_STORE_CTX_init(context, store, certificate.get(), nullptr);
  X509_STORE_CTX_set_purpose(context, purpose);
  X509_STORE_CTX_set_time(context, 0, absl::ToTimeT(at));
  const int result = X509_verify_cert(context) == 1 ? X509_V_OK : X509_STORE_CTX_get_error(context);
  X509_STORE_CTX_free(context);
  X509_STORE_free(store);
  return result;
}

std::string UriOf(const std::string& pem) {
  const X509Pointer certificate = Parse(pem);
  auto* names =
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr));
  std::string uri;
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    absl::StrAppend(
        &uri, absl::string_view(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier)),
                                static_cast<size_t>(ASN1_STRING_length(name->d.uniformResourceIdentifier))));
  }
  GENERAL_NAMES_free(names);
  return uri;
}

class CertificatesTest : public ::testing::Test {
 protected:
  CertificatesTest() : authority_(*MakeAuthority(now_)), foreign_(*MakeAuthority(now_)) {}
  static std::string Request(const std::string& name) { return *NewCertificateRequestPem(*NewPrivateKeyPem(), name); }

  const absl::Time now_ = absl::FromUnixSeconds(1'800'000'000);
  const KeyAndCertificate authority_;
  const KeyAndCertificate foreign_;
};

TEST_F(CertificatesTest, AClientIsOneToItsOwnAuthorityAlone) {
  const auto signed_pem = SignClientRequest(authority_, Request("prod-1"), "rb://agent/prod-1", now_);
  RB_ASSERT_OK(signed_pem.status());
  const absl::Time later = now_ + absl::Hours(1);
  EXPECT_EQ(Verify(authority_.certificate_pem, *signed_pem, X509_PURPOSE_SSL_CLIENT, later), X509_V_OK);
  EXPECT_NE(Verify(foreign_.certificate_pem, *signed_pem, X509_PURPOSE_SSL_CLIENT, later), X509_V_OK);
  EXPECT_NE(Verify(authority_.certificate_pem, *signed_pem, X509_PURPOSE_SSL_SERVER, later), X509_V_OK)
      << "an agent must not be able to pose as the controller";
  EXPECT_EQ(Verify(authority_.certificate_pem, *signed_pem, X509_PURPOSE_SSL_CLIENT, now_ + absl::Hours(24 * 365 * 3)),
            X509_V_ERR_CERT_HAS_EXPIRED);
  EXPECT_EQ(UriOf(*signed_pem), "rb://agent/prod-1");
  EXPECT_EQ(X509_check_ca(Parse(*signed_pem).get()), 0);
}

TEST_F(CertificatesTest, WhatTheRequestSaysOfItselfIsIgnored) {
  const auto signed_pem = SignClientRequest(authority_, Request("admin"), "rb://agent/prod-1", now_);
  RB_ASSERT_OK(signed_pem.status());
  EXPECT_EQ(UriOf(*signed_pem), "rb://agent/prod-1");
  char subject[256] = "";
  X509_NAME_oneline(X509_get_subject_name(Parse(*signed_pem).get()), subject, sizeof(subject));
  EXPECT_THAT(std::string(subject), Not(HasSubstr("admin")));
}

TEST_F(CertificatesTest, AServerIsReachedByItsNamesAndIsNoClient) {
  const auto server = MakeServerCertificate(authority_, {"controller.example.org", "127.0.0.1"}, now_);
  RB_ASSERT_OK(server.status());
  const absl::Time later = now_ + absl::Hours(1);
  EXPECT_EQ(Verify(authority_.certificate_pem, server->certificate_pem, X509_PURPOSE_SSL_SERVER, later), X509_V_OK);
  EXPECT_NE(Verify(authority_.certificate_pem, server->certificate_pem, X509_PURPOSE_SSL_CLIENT, later), X509_V_OK);
  const X509Pointer certificate = Parse(server->certificate_pem);
  EXPECT_EQ(X509_check_host(certificate.get(), "controller.example.org", 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_host(certificate.get(), "other.example.org", 0, 0, nullptr), 0);
  EXPECT_EQ(X509_check_ip_asc(certificate.get(), "127.0.0.1", 0), 1);
}

TEST_F(CertificatesTest, WhatIsNoRequestIsRefused) {
  const std::string good = Request("prod-1");
  // Another key's signature under this key's request.
  const std::string other = Request("prod-1");
  const size_t middle = good.size() / 2;
  for (const std::string& bad :
       {std::string(), std::string("hello"), good.substr(0, middle), good.substr(0, middle) + other.substr(middle),
        authority_.certificate_pem, std::string(1 << 20, 'A')}) {
    EXPECT_THAT(SignClientRequest(authority_, bad, "rb://agent/prod-1", now_).status(),
                FailsWith(absl::StatusCode::kInvalidArgument, "request"))
        << bad.substr(0, 60);
  }
}

TEST(IdentityUri, Table) {
  struct Case {
    const char* uri;
    bool ok;
    const char* name;
    bool is_agent;
  };
  for (const Case& each : {
           Case{"rb://agent/prod-1", true, "prod-1", true},
           Case{"rb://operator/alice", true, "alice", false},
           Case{"rb://admin/alice", false, "", false},
           Case{"rb://agent/", false, "", false},
           Case{"rb://agent/a/b", false, "", false},
           Case{"rb://agent/../x", false, "", false},
           Case{"RB://agent/prod-1", false, "", false},
           Case{"http://agent/prod-1", false, "", false},
           Case{"", false, "", false},
       }) {
    std::string name;
    bool is_agent = false;
    EXPECT_EQ(ParseIdentityUri(each.uri, &name, &is_agent), each.ok) << each.uri;
    if (!each.ok) continue;
    EXPECT_EQ(name, each.name);
    EXPECT_EQ(is_agent, each.is_agent);
  }
}

TEST(JoinToken, ComesBackAndIsNeverShownInAnError) {
  JoinToken token;
  token.agent_name = "prod-1";
  token.join_address = "controller.example.org:7444";
  token.link_address = "controller.example.org:7443";
  token.secret = std::string(64, 'a');
  token.ca_pem = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
  const std::string line = FormatJoinToken(token);
  EXPECT_THAT(line, Not(HasSubstr("\n")));
  const auto parsed = ParseJoinToken(line + "\n");
  RB_ASSERT_OK(parsed.status());
  EXPECT_EQ(parsed->secret, token.secret);
  EXPECT_EQ(parsed->agent_name, "prod-1");
  EXPECT_EQ(parsed->ca_pem, token.ca_pem);
  for (size_t cut = 0; cut < line.size(); cut += 7) {
    const absl::Status refused = ParseJoinToken(line.substr(0, cut)).status();
    ASSERT_FALSE(refused.ok()) << cut;
    if (cut < 20) continue;
    EXPECT_THAT(std::string(refused.message()), Not(HasSubstr(line.substr(9, cut - 9))));
  }
}

}  // namespace
}  // namespace rb::controller

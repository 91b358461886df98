// Mints JWTs with `jose`, as a back end in JavaScript would.
//
// Reads from stdin a JSON list of {alg, key (PKCS#8 PEM), header, claims}; writes a JSON list of tokens. jose is found
// in the folder that the one argument names (its node_modules).

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(`${process.argv[2]}/`).resolve("jose");
const { SignJWT, importPKCS8 } = await import(pathToFileURL(found));

let text = "";
for await (const chunk of process.stdin) text += chunk;

const tokens = [];
for (const { alg, key, header, claims } of JSON.parse(text)) {
  const { aud, exp, nbf, jti, ...rest } = claims;
  const jwt = new SignJWT(rest).setProtectedHeader({ alg, ...header });
  // What it has methods for is set by them.
  if (aud !== undefined) jwt.setAudience(aud);
  if (exp !== undefined) jwt.setExpirationTime(exp);
  if (nbf !== undefined) jwt.setNotBefore(nbf);
  if (jti !== undefined) jwt.setJti(jti);
  tokens.push(await jwt.sign(await importPKCS8(key, alg)));
}
process.stdout.write(JSON.stringify(tokens));

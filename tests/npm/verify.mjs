// Verifies access tokens as another service would, through jose and the published keys. The tokens and what is expected
// of them are JSON on standard input; header and claims, or why it was refused, are JSON on standard output.
import { createRemoteJWKSet, jwtVerify } from 'jose'
import { text } from 'node:stream/consumers'

const { jwks_uri, tokens } = JSON.parse(await text(process.stdin))
const keys = createRemoteJWKSet(new URL(jwks_uri))
const outcomes = {}
for (const [name, { token, ...expected }] of Object.entries(tokens)) {
  try {
    const { protectedHeader, payload } = await jwtVerify(token, keys, { algorithms: ['ES256'], ...expected })
    outcomes[name] = { header: protectedHeader, claims: payload }
  } catch (error) {
    outcomes[name] = { code: error.code, claim: error.claim }
  }
}
console.log(JSON.stringify(outcomes))

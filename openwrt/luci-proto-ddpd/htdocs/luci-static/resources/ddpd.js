'use strict';
'require baseclass';

/* What the pages of ddpd share: how values are written, and a key that can be copied.
 * A function named …Wrong says what is wrong, in a sentence, or nothing.
 * (LuCI's packer knows a regular expression by the sign before it, and takes none for one after `return` or `=>`.) */

/* What the protocol's scripts tell netifd. */
const errors = {
	NO_GRANTOR: _('Nobody answers at the grantor’s address.'),
	NOT_ASKED: _('The grantor cannot be asked from here yet.'),
	UNKNOWN_KEY: _('Nobody has answered at the grantor’s address yet. A grantor answers no key that it does not know: enter our public key there.'),
	REFUSED: _('The grantor refuses; the system log says why.'),
	NO_NAME: _('The grantor’s name cannot be resolved.'),
	INVALID_CONFIG: _('The configuration is wrong; the system log says where.'),
	MISSING_KEY: _('The grantor’s public key is missing.'),
	MISSING_GRANTOR: _('The grantor’s address is missing.'),
	CLONE: _('Another machine uses our key; each machine needs its own.'),
	NO_PYTHON: _('python3-light or python3-pynacl is missing or broken.')
};

function parts(text) {
	return text.split(/[\s,]+/).filter(word => word != '');
}

function bytesOf4(text) {
	const found = text.split('.');

	return (found.length == 4 && found.every(part => (/^(0|[1-9]\d{0,2})$/).test(part) && +part < 256))
		? found.map(Number) : null;
}

function bytesOf6(text) {
	const halves = text.split('::');

	if (halves.length > 2)
		return null;

	const read = (half, last) => {
		const found = [];
		const words = (half == '') ? [] : half.split(':');

		for (let n = 0; n < words.length; n++) {
			const dotted = (last && n == words.length - 1) ? bytesOf4(words[n]) : null;

			if (dotted)
				found.push(...dotted);
			else if (/^[0-9a-fA-F]{1,4}$/.test(words[n]))
				found.push(parseInt(words[n], 16) >> 8, parseInt(words[n], 16) & 255);
			else
				return null;
		}

		return found;
	};

	const high = read(halves[0], halves.length == 1);
	const low = (halves.length == 2) ? read(halves[1], true) : [];

	if (high == null || low == null)
		return null;

	const gap = 16 - high.length - low.length;

	if ((halves.length == 1) ? gap != 0 : gap < 2)
		return null;

	return [ ...high, ...new Array(gap).fill(0), ...low ];
}

function bytesOf(text) {
	return (text.indexOf(':') >= 0) ? bytesOf6(text) : bytesOf4(text);
}

/* { bytes, length, whole: no host bits are set }, or null */
function prefixOf(text) {
	const slash = text.indexOf('/');
	const bytes = bytesOf((slash < 0) ? text : text.slice(0, slash));

	if (bytes == null || (slash >= 0 && !/^\d{1,3}$/.test(text.slice(slash + 1))))
		return null;

	const bits = 8 * bytes.length;
	const length = (slash < 0) ? bits : +text.slice(slash + 1);
	const whole = bytes.every((byte, n) => {
		const kept = Math.min(8, Math.max(0, length - 8 * n));

		return (byte & (255 >> kept)) == 0;
	});

	return (length <= bits) ? { bytes: bytes, length: length, whole: whole } : null;
}

function keyWrong(text) {
	return (/^[A-Za-z0-9+\/]{42}[AEIMQUYcgkosw048]=$/).test(text)
		? '' : _('A public key is 44 letters of base64, as “ddpd pubkey” prints it.');
}

function addressWrong(text) {
	return bytesOf(text) ? '' : _('This is neither an IPv4 nor an IPv6 address.');
}

function prefixWrong(text) {
	const found = prefixOf(text);

	if (found == null)
		return _('This is no prefix; write it like 2001:db8::/48 or 192.0.2.0/24.');

	return found.whole ? '' : _('The prefix has bits set behind its length.');
}

function nameWrong(text) {
	return (text.length <= 253 && text.split('.').every(label => (/^[A-Za-z0-9-]{1,63}$/).test(label)))
		? '' : _('A host name has letters, digits, hyphens and dots.');
}

function deviceWrong(text) {
	return ((/^[A-Za-z0-9._@:-]{1,15}$/.test(text) && text != '.' && text != '..') || /^@[A-Za-z0-9_]+$/.test(text))
		? '' : _('An interface is named like br-lan, or like @lan for the device of the network lan.');
}

function portWrong(text) {
	return (/^\d{1,5}$/.test(text) && +text >= 1 && +text <= 65535)
		? '' : _('A port is a whole number from 1 to 65535.');
}

function hostPortWrong(text) {
	const boxed = text.match(/^\[([^\]]*)\](?::(.*))?$/);
	const plain = (text.split(':').length > 2) ? [ text, text ] : text.match(/^([^:]*)(?::(.*))?$/);
	const found = (text[0] == '[') ? boxed : plain;

	if (found == null)
		return _('Write a host name or an address, with a port behind it if need be: [2001:db8::1]:3373.');

	const host = found[1].split('%');
	const isNumeric = host[0].indexOf(':') >= 0 || /^[\d.]+$/.test(host[0]);
	const isScoped = host.length == 2 && (isNumeric || host[0] == 'gateway') && deviceWrong(host[1]) == '';

	if ((isNumeric ? !bytesOf(host[0]) : nameWrong(host[0]) != '') || !(host.length == 1 || isScoped))
		return _('This is neither a host name nor an address.');

	return (found[2] == null || found[2] == '') ? '' : portWrong(found[2]);
}

function secondsOf(text) {
	const found = text.match(/^(\d{1,10})([smhdw]?)$/);

	return found ? found[1] * { '': 1, s: 1, m: 60, h: 3600, d: 86400, w: 604800 }[found[2]] : 0;
}

function durationWrong(text) {
	return (text == 'forever' || (secondsOf(text) > 0 && secondsOf(text) < 4294967295))
		? '' : _('A time is written like 90s, 30m, 12h, 30d or forever.');
}

/* `like`: what is said of a line that has not the form of an ask, where the usual example does not fit */
function askWrong(text, like) {
	const found = text.trim().match(/^(?:(\d{1,3}):\s*)?(\S+)(?:\s+on\s+(\S.*))?$/);

	if (found == null || (found[1] != null && +found[1] > 255))
		return like || _('Write what is asked for like ::/56, 0.0.0.0/32, “3: ::/60” or “::/56 on @lan br-guest=7”.');

	if (prefixWrong(found[2]) != '')
		return prefixWrong(found[2]);

	if (prefixOf(found[2]).length < ((found[2].indexOf(':') >= 0) ? 16 : 8))
		return _('This prefix is too large to ask for.');

	const names = [], numbers = [];

	for (const word of parts(found[3] || '')) {
		const lan = word.match(/^([^=]*)(?:=(\d{1,5}))?$/);

		if (lan == null || (lan[2] != null && +lan[2] > 65535))
			return _('The number of a subnet is written behind its interface, like br-lan=7.');

		if (deviceWrong(lan[1]) != '')
			return deviceWrong(lan[1]);

		if (names.indexOf(lan[1]) >= 0 || (lan[2] != null && numbers.indexOf(+lan[2]) >= 0))
			return _('An interface or a number stands here twice.');

		names.push(lan[1]);
		numbers.push(lan[2] != null ? +lan[2] : null);
	}

	return '';
}

function pathWrong(text) {
	return (/^\/[^\s'";#]+$/).test(text)
		? '' : _('Write the whole path of a file, from /, without spaces, quotes, “;” and “#”.');
}

/* for the `validate` of an option: true, or the sentence */
function checked(wrong) {
	return (section_id, value) => (value == null || value === '') ? true : (wrong(value) || true);
}

/* The key, and a button that copies it; pages on plain http have no navigator.clipboard. */
function copied(text) {
	if (window.isSecureContext && navigator.clipboard)
		return navigator.clipboard.writeText(text).then(() => true, () => false);

	const area = E('textarea', { 'style': 'position:fixed;top:0;left:-100em', 'readonly': 'readonly' }, [ text ]);

	document.body.appendChild(area);
	area.select();

	let done = false;

	try {
		done = document.execCommand('copy');
	}
	catch (why) {
		done = false;
	}

	document.body.removeChild(area);

	return Promise.resolve(done);
}

function copyable(text) {
	const shown = (text.indexOf('\n') >= 0)
		? E('pre', { 'class': 'ddpd-key', 'style': 'white-space:pre-wrap;word-break:break-all' }, [ text ])
		: E('code', { 'class': 'ddpd-key', 'style': 'word-break:break-all' }, [ text ]);
	const button = E('button', {
		'class': 'cbi-button cbi-button-neutral ddpd-copy',
		'type': 'button',
		'style': 'margin-left:.5em',
		'click': () => copied(text).then(done => {
			if (done) {
				button.textContent = _('Copied');
				window.setTimeout(() => { button.textContent = _('Copy'); }, 2000);
			}
			else {
				window.getSelection().selectAllChildren(shown);
				button.textContent = _('Press Ctrl+C');
			}
		})
	}, [ _('Copy') ]);

	return E('span', {}, [ shown, button ]);
}

return baseclass.extend({
	errors: errors,
	parts: parts,
	bytesOf6: bytesOf6,
	bytesOf: bytesOf,
	prefixOf: prefixOf,
	keyWrong: keyWrong,
	addressWrong: addressWrong,
	prefixWrong: prefixWrong,
	nameWrong: nameWrong,
	deviceWrong: deviceWrong,
	portWrong: portWrong,
	hostPortWrong: hostPortWrong,
	secondsOf: secondsOf,
	durationWrong: durationWrong,
	askWrong: askWrong,
	pathWrong: pathWrong,
	checked: checked,
	copyable: copyable
});

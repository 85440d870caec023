'use strict';
'require form';
'require fs';
'require network';
'require uci';

/* ---- how values are written: the same lines in protocol/ddpd.js and view/ddpd/config.js (a test compares them) ----
 * Each says what is wrong, in a sentence, or nothing. */

function parts(text) {
	return text.split(/[\s,]+/).filter(word => word != '');
}

function bytesOf4(text) {
	const found = text.split('.');

	return (found.length == 4 && found.every(part => /^(0|[1-9]\d{0,2})$/.test(part) && +part < 256))
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
	return /^[A-Za-z0-9+\/]{42}[AEIMQUYcgkosw048]=$/.test(text)
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
	return (text.length <= 253 && text.split('.').every(label => /^[A-Za-z0-9-]{1,63}$/.test(label)))
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

function askWrong(text) {
	const found = text.trim().match(/^(?:(\d{1,3}):\s*)?(\S+)(?:\s+on\s+(\S.*))?$/);

	if (found == null || (found[1] != null && +found[1] > 255))
		return _('Write what is asked for like ::/56, 0.0.0.0/32, “3: ::/60” or “::/56 on @lan br-guest=7”.');

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
	return /^\/[^\s'";#]+$/.test(text)
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

/* ---- end of the same lines ---- */

network.registerErrorCode('NO_GRANTOR', _('Nobody answers at the grantor’s address.'));
network.registerErrorCode('UNKNOWN_KEY', _('The grantor has never answered. It answers no key that it does not know: enter our public key there.'));
network.registerErrorCode('REFUSED', _('The grantor refuses; the system log says why.'));
network.registerErrorCode('NO_NAME', _('The grantor’s name cannot be resolved.'));
network.registerErrorCode('INVALID_CONFIG', _('The configuration is wrong; the system log says where.'));
network.registerErrorCode('MISSING_KEY', _('The grantor’s public key is missing.'));
network.registerErrorCode('MISSING_GRANTOR', _('The grantor’s address is missing.'));
network.registerErrorCode('NOT_ROUTED', _('A prefix that was granted has no place to be routed to.'));
network.registerErrorCode('CLONE', _('Another machine uses our key; each machine needs its own.'));
network.registerErrorCode('NO_PYTHON', _('python3-light or python3-pynacl is missing or broken.'));

return network.registerProtocol('ddpd', {
	getI18n: function() {
		return _('Prefixes from a grantor (ddpd)');
	},

	/* opkg's LuCI asks the one, apk's the other. */
	getOpkgPackage: function() {
		return 'ddpd';
	},

	getPackageName: function() {
		return 'ddpd';
	},

	/* It makes no device of its own: it lives on the one that `device` names, as DHCPv6 does. So the base class
	 * knows its device, and what it holds. */
	isFloating: function() {
		return false;
	},

	isVirtual: function() {
		return false;
	},

	getIfname: function() {
		return this._ubus('l3_device') || this.super('getIfname', []);
	},

	renderFormOptions: function(s) {
		let o;

		o = s.taboption('general', form.DynamicList, 'grantor', _('Grantor'),
			_('Host name or address of the grantor, with a port if it is not 3373. Several are tried in turn; “gateway” is the default router, whoever it is.'));
		o.placeholder = 'exit1.example.net';
		o.rmempty = false;
		o.validate = checked(hostPortWrong);

		o = s.taboption('general', form.Value, 'key', _('Grantor’s public key'),
			_('As the grantor tells it: 44 letters of base64. It is not secret.'));
		o.rmempty = false;
		o.validate = checked(keyWrong);

		o = s.taboption('general', form.DummyValue, '_ours', _('Our public key'),
			_('The grantor needs it: it answers nobody whose key it does not know.'));
		o.load = function(section_id) {
			return fs.trimmed('/etc/ddpd/key.pub');
		};
		o.renderWidget = function(section_id, option_index, cfgvalue) {
			const keyfile = uci.get('network', section_id, 'keyfile') || '/etc/ddpd/key';

			if (keyfile != '/etc/ddpd/key')
				return E('em', {}, [ _('This interface has a key of its own; the public one is in the file %s.').format(keyfile + '.pub') ]);

			return cfgvalue ? copyable(cfgvalue)
				: E('em', {}, [ _('It appears here after the first start, which makes the key.') ]);
		};

		o = s.taboption('general', form.DynamicList, 'ask', _('Ask for'),
			_('One prefix a line: ::/56 and 0.0.0.0/32 are any of that length. A fixed slot stands in front (“3: ::/60”), interfaces that ddpd itself gives a subnet behind (“::/60 on @lan br-guest=7”).'));
		o.default = '::/56';
		o.placeholder = '::/56';
		o.validate = checked(askWrong);
		/* A line has spaces in it: a single string is one line, not a list of words. */
		o.load = function(section_id) {
			const lines = uci.get('network', section_id, 'ask');

			return (typeof(lines) == 'string') ? [ lines ] : lines;
		};

		o = s.taboption('general', form.Flag, 'defaultroute', _('Default route'),
			_('For traffic from the prefixes that the grantor gives, and for no other traffic.'));
		o.default = o.enabled;

		o = s.taboption('general', form.Value, 'gateway', _('Gateway'),
			_('Next hop of that default route, where it is not where the asks go.'));
		o.placeholder = _('where the asks go');
		o.validate = checked(addressWrong);
		o.depends('defaultroute', '1');

		o = s.taboption('advanced', form.Flag, 'peerdns', _('Use the grantor’s name servers'),
			_('The name servers and search domains that the grantor tells are this router’s own.'));
		o.default = o.enabled;

		o = s.taboption('advanced', form.Value, 'metric', _('Metric of the default route'));
		o.datatype = 'uinteger';
		o.placeholder = '0';

		o = s.taboption('advanced', form.Value, 'mtu', _('MTU'));
		o.datatype = 'range(1280, 9000)';
		o.placeholder = _('as granted');

		o = s.taboption('advanced', form.Value, 'hostname', _('Host name'),
			_('Told to the grantor, whose status shows it.'));
		o.validate = checked(nameWrong);

		o = s.taboption('advanced', form.Value, 'keepalive', _('Keepalive'),
			_('Ask at least this often; behind a NAT 25s keeps the way open.'));
		o.placeholder = _('not needed');
		o.validate = checked(durationWrong);

		o = s.taboption('advanced', form.Value, 'keyfile', _('File of our private key'),
			_('It is made if it is missing, and never leaves this router.'));
		o.placeholder = '/etc/ddpd/key';
		o.validate = checked(pathWrong);

		o = s.taboption('advanced', form.DynamicList, 'accept', _('Accept only'),
			_('Grants outside of these prefixes are refused.'));
		o.placeholder = '2000::/3';
		o.validate = checked(prefixWrong);

		o = s.taboption('advanced', form.Flag, 'norelease', _('Keep the leases'),
			_('Do not give them back when the interface goes down.'));
		o.default = o.disabled;
	}
});
